"""2,000 mutated records, claims, array files and nets: a sentence comes back, or a value; never anything else.

Half of the mutations are of bytes, where hashes catch most; the others are of values, under hashes that are mended, so
that they reach what stands behind the hashes. Every case has a seed of its own, which names it when it fails.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from bench import proposals
from bench.checkpoint import open_net, pack, unpack
from bench.claim import load_claim, make, outcomes_of, rules_of, sound
from bench.errors import LONGEST, PrunebenchError
from bench.files import canonical_json, sha256_of
from bench.models import build
from bench.record import load_arrays, load_record, outcomes_path, recount, standing
from tests import records
from tests.nets import STORE, TINY, seal_state, toml

CASES = {"records": 500, "claims": 600, "arrays": 400, "nets": 500}

# What no value of ours is, and what others have tripped over.
ODD = (
    None, True, -1, 0, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "0", "1e9", "\0",
    "\x1b[2J", "<script>alert(1)</script>", "../../etc/passwd", "/etc/passwd", "a" * 5000, "\ud800", "8/0", "\u202e",
    [], {}, [[]], [None], {"": ""}, [2**62] * 3, "digits-linf", "folder:/", "__proto__",
)  # fmt: skip


def test_there_are_2000():
    assert sum(CASES.values()) == 2000


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Work in a folder of one's own; whatever was written elsewhere in it is found by `nothing_else`."""
    monkeypatch.chdir(tmp_path)


def survives(case, read):
    """Whether `read` succeeds; anything but a sentence for the user is a fault of ours."""
    try:
        read()
    except PrunebenchError as error:
        said = str(error)
    except BaseException as error:
        raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error
    else:
        return True
    assert said.isprintable() and 0 < len(said) <= LONGEST, case
    return False


def bent_bytes(data, draw):
    """`data` with bits flipped, a part cut out, doubled, or filled with one byte."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(max(1, len(data)))
        stop = min(len(data), start + draw.choice((1, 4, 64, 4096)))
        match draw.randrange(5):
            case 0:
                data[start:stop] = bytes(byte ^ (1 << draw.randrange(8)) for byte in data[start:stop])
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop]
            case 3:
                data[start:stop] = bytes([draw.randrange(256)]) * (stop - start)
            case 4:
                del data[start:]
    return bytes(data)


def bent_value(value, draw):
    """A copy of the JSON value with one place in it made odd, lost, doubled or renamed."""
    value = json.loads(json.dumps(value))
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        holder, key = value, draw.choice(keys)
        while isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.8:
            holder = holder[key]
            key = draw.choice(list(holder) if isinstance(holder, dict) else list(range(len(holder))))
        match draw.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(("extra", "", "\x1b", key + " "))] = holder.pop(key)
            case 1:
                holder.append(holder[key])
            case _:
                holder[key] = draw.choice(ODD)
        return value


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_records(tmp_path):
    path = records.save(tmp_path, records.make())
    sane, text = json.loads(path.read_text()), path.read_bytes()
    before, sound_ones = files(tmp_path), 0
    for case in range(CASES["records"]):
        draw = random.Random(case)
        if case % 2:
            path.write_bytes(bent_bytes(text, draw))
        else:
            values = bent_value(sane, draw)
            if case % 4 == 0 and isinstance(values, dict) and "sha256" in values:
                rest = {key: value for key, value in values.items() if key != "sha256"}
                values["sha256"] = sha256_of(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
            path.write_text(json.dumps(values))

        def read():
            record = load_record(path)
            recount(path, record)

        sound_ones += survives(case, read)
    assert 0 < sound_ones < CASES["records"] / 2  # whitespace and free text may change; the rest may not
    assert files(tmp_path) == before


def as_toml(values):
    """The values as TOML, odd ones by their JSON, which is often no TOML: that too may lie in a file."""
    try:
        return tomli_w.dumps(values).encode()
    except (TypeError, ValueError, AttributeError):
        return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()).encode()


def test_claims(tmp_path):
    record = records.save(tmp_path / "records", records.make(net={"sha256": sha256_of(b"a net")}))
    (tmp_path / "net").write_bytes(b"a net")
    (tmp_path / "secret").write_text("n = 1")
    path = make(record, tmp_path / "net", tmp_path / "claim")
    rules = path.parent / "rules.toml"
    rules.write_text(toml(TINY))
    plain = load_claim(path).model_dump(mode="json", by_alias=True, exclude_none=True)
    own = plain | {"protocol": {"name": "rules.toml", "sha256": TINY.sha256}}
    law = TINY.model_dump(mode="json", exclude_none=True)
    before, sound_ones = files(tmp_path), 0
    for case in range(CASES["claims"]):
        draw = random.Random(case)
        match case % 3:
            case 0:
                path.write_bytes(as_toml(bent_value(draw.choice((plain, own)), draw)))
            case 1:
                path.write_bytes(bent_bytes(as_toml(plain), draw))
            case 2:
                path.write_bytes(as_toml(own))
                rules.write_bytes(
                    as_toml(bent_value(law, draw)) if draw.random() < 0.7 else bent_bytes(as_toml(law), draw)
                )

        def read():
            claim = load_claim(path)
            sound(path, claim.net, "a net")
            rules_of(path, claim)
            outcomes_of(path, claim)

        sound_ones += survives(case, read)
    assert 0 < sound_ones < CASES["claims"] / 2
    assert files(tmp_path) == before


def bent_arrays(arrays, draw):
    """`arrays` with one of another kind, another shape or other values, or gone."""
    arrays, name = dict(arrays), draw.choice(sorted(arrays))
    array = arrays.pop(name)
    match draw.randrange(7):
        case 0:
            return arrays
        case 1:
            return arrays | {f"{name}/": array}
        case 2:
            return arrays | {name: array.astype(draw.choice(("f8", "i8", "u1", "c16", "S3", "U2", "M8[s]", "?")))}
        case 3:
            return arrays | {name: array[: draw.randrange(len(array) + 1)]}
        case 4:
            return arrays | {name: array.reshape(-1)[:1].reshape(())}
        case 5:
            return arrays | {name: np.roll(array, draw.randrange(1, 5), 0)}
    return arrays | {name: array[..., None]}


def bent_head(data, draw):
    """An array file whose heads, which say shape and type, are written over at the same length."""
    old = draw.choice((b"(100,)", b"'<i2'", b"'|b1'", b"False", b"'fortran_order'", b"NUMPY", b"descr"))
    new = bytes(draw.choice(b"()[]{}'-9e,<|OVx\\\0\n_") for _ in old)
    return data.replace(old, new, draw.randint(1, 3))


def npz(arrays, *, squeezed=True):
    buffer = io.BytesIO()
    (np.savez_compressed if squeezed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # numpy warns of heads that it reads in another way
def test_outcomes_and_proposals(tmp_path):
    record = records.make()
    path = records.save(tmp_path, record)
    raw, kept = outcomes_path(path), tmp_path / "proposals.npz"
    images = STORE.testing("digits", 20).images.numpy().astype(np.float32) / 255
    index = np.array([3, 5, 8])
    data = proposals.pack(
        proposals.Proposals(index, np.clip(images[index] + 0.1, 0, 1).astype(np.float32)), images[index], 0.2,
        np.array([False, True, False]),
    )  # fmt: skip
    kept.write_bytes(data)
    outcomes = load_arrays(raw, record.outcomes, "outcomes")
    stored = load_arrays(kept, sha256_of(data), "proposals")
    before, sound_ones = files(tmp_path), 0
    for case in range(CASES["arrays"]):
        draw = random.Random(case)
        file, arrays = (raw, outcomes) if case % 2 else (kept, stored)
        match draw.randrange(4):
            case 0:
                changed = bent_bytes(npz(arrays), draw)
            case 1:
                changed = bent_head(npz(arrays, squeezed=False), draw)
            case 2:
                changed = bent_bytes(npz(arrays, squeezed=False), draw)
            case 3:
                changed = npz(bent_arrays(arrays, draw))
        file.write_bytes(changed)

        def read(file=file, changed=changed):
            if file == kept:
                found = proposals.load(kept, sha256_of(changed), images, 0.2)
                assert found.images.shape[1:] == images.shape[1:] and len(found.index) == len(found.images)
            else:
                found = recount(path, record.model_copy(update={"outcomes": sha256_of(changed)}))
                assert standing(found).sum() == record.score.robust

        sound_ones += survives(case, read)
    assert 0 < sound_ones < CASES["arrays"] / 2
    assert files(tmp_path) == before


def with_head(data, head):
    """A safetensors file with another head, its length told truly."""
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def hashable(values):
    """Whether the values can be under a hash: infinities and halves of letters cannot."""
    try:
        return bool(canonical_json(values))
    except ValueError:
        return False


def test_nets(tmp_path):
    net = seal_state(tmp_path / "net", build("digits-cnn", info=STORE.info("digits")))
    data = net.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, about = unpack(data, "net")
    before, sound_ones = files(tmp_path), 0
    for case in range(CASES["nets"]):
        draw = random.Random(case)
        match case % 4:
            case 0:  # what our header says, under a whole hash
                values = bent_value(about, draw)
                while not hashable(values):
                    values = bent_value(about, draw)
                net.write_bytes(pack(tensors, values))
            case 1:  # what safetensors says of the tensors
                net.write_bytes(with_head(data, bent_value(head, draw)))
            case 2:  # its length
                length = draw.choice((0, 1, 7, 2**31, 2**62, 2**64 - 1, len(data), draw.randrange(2**64)))
                net.write_bytes(length.to_bytes(8, "little") + data[8:])
            case 3:
                net.write_bytes(bent_bytes(data[: 8 + 20_000] if draw.random() < 0.5 else data, draw))
        sound_ones += survives(case, lambda: open_net(net))
    assert 0 < sound_ones < CASES["nets"] / 2
    assert files(tmp_path) == before


def test_the_fuzz_can_fail():
    """The twin: an error that is not ours, and a sentence that steers terminals, are faults."""
    with pytest.raises(AssertionError, match="case 7: KeyError"):
        survives(7, lambda: {}["a"])

    class Loud(PrunebenchError):
        def __str__(self):
            return "\x1b[2J"

    def loud():
        raise Loud

    with pytest.raises(AssertionError, match="8"):
        survives(8, loud)
    assert not survives(9, lambda: open_net(Path("nowhere")))
