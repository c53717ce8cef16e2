"""5,000 mutated inputs of every kind: a sentence comes back, or a value; never anything else, in 10 s and 1 GiB.

Half of the mutations are of bytes, where hashes catch most; the others are of values, under hashes that are mended, so
that they reach what stands behind the hashes. Every case has a seed of its own, which names it when it fails. A fifth
of the cases runs with the quick tests; all of them, and what became of them: `pytest tests/system/test_fuzz.py -m slow
-s`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save as save_safetensors

from prunebench.bench import adversarials, signature
from prunebench.bench.checkpoint import open_net, pack, unpack
from prunebench.bench.claims.claim import load_claim, outcomes_of, rules_of, sound
from prunebench.bench.claims.make import make
from prunebench.bench.cli import main
from prunebench.bench.errors import LONGEST, PrunebenchError
from prunebench.bench.files import canonical_json, sha256_of
from prunebench.bench.interop import checkpoints
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.models import build
from prunebench.bench.outcomes import load_arrays, outcomes_path, recount, standing_of
from prunebench.bench.protocol import load
from prunebench.bench.record import Record, load_record
from prunebench.bench.score.curve import radii
from prunebench.bench.score.effort import TIMES, effort_of, save_effort
from prunebench.bench.score.journal import Finding, Journal
from tests.support import records
from tests.support.nets import SMALL, STORE, TINY, seal_state, toml

CASES = {
    "records": 700,
    "claims": 800,
    "arrays": 700,
    "nets": 700,
    "protocols": 600,
    "checkpoints": 500,
    "journals": 500,
    "lines": 500,
}
SHARES = pytest.mark.parametrize("share", [5, pytest.param(1, marks=pytest.mark.slow)])
SECONDS, MEMORY, PATIENCE = 10.0, 2**30, 60  # of one case: processor seconds, bytes, seconds on the clock

# What no value of ours is, and what others have tripped over.
ODD = (
    None,
    True,
    -1,
    0,
    2**63,
    2**64,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "0",
    "1e9",
    "\0",
    "\x1b[2J",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 5000,
    "\ud800",
    "8/0",
    "\u202e",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    [2**62] * 3,
    "digits-linf",
    "folder:/",
    "__proto__",
)


def test_there_are_5000():
    assert sum(CASES.values()) == 5000


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Work in a folder of one's own; whatever was written elsewhere in it is found by `nothing_else`."""
    monkeypatch.chdir(tmp_path)


def peak():
    """The most memory that this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Late(BaseException):
    """A case that waits for something."""


def _late(*_: object) -> None:
    raise Late


def survives(case, read, *, seconds=SECONDS, memory=MEMORY):
    """Whether `read` succeeds; anything but a sentence for the user is a fault of ours, and so are time and memory."""
    before, began = peak(), time.process_time()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(PATIENCE)
    try:
        read()
    except PrunebenchError as error:
        said = str(error)
    except BaseException as error:
        raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error
    else:
        said = None
    finally:
        signal.alarm(0)
    assert time.process_time() - began < seconds, f"case {case} took too long"
    assert peak() - before < memory, f"case {case} took too much memory"
    assert said is None or (said.isprintable() and 0 < len(said) <= LONGEST), case
    return said is None


@dataclass
class Tally:
    """What became of the cases of one kind, for who wants to see it."""

    kind: str
    share: int
    sound: int = 0

    @property
    def cases(self) -> range:
        return range(CASES[self.kind] // self.share)

    def run(self, case: int, read: Callable[[], object]) -> bool:
        was_sound = survives(f"{case} of {self.kind}", read)
        self.sound += was_sound
        return was_sound

    def close(self, most: float = 0.5) -> None:
        """Some are read and most are refused: else the mutations are too strong or too weak."""
        n = len(self.cases)
        print(f"{self.kind}: {n} inputs, {self.sound} read, {n - self.sound} refused, no fault")
        assert 0 < self.sound < most * n


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


@SHARES
def test_records(tmp_path, share):
    tally = Tally("records", share)
    path = records.save(tmp_path, records.make())
    both = [path.read_bytes(), canonical_json(records.refusal().model_dump(mode="json", by_alias=True))]
    before = files(tmp_path)
    for case in tally.cases:
        draw = random.Random(case)
        text = both[case % 5 == 4]
        if case % 2:
            path.write_bytes(bent_bytes(text, draw))
        else:
            values = bent_value(json.loads(text), draw)
            if case % 4 == 0 and isinstance(values, dict) and "sha256" in values:
                rest = {key: value for key, value in values.items() if key != "sha256"}
                values["sha256"] = sha256_of(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
            path.write_text(json.dumps(values))

        def read():
            record = load_record(path)
            if isinstance(record, Record):
                recount(path, record)

        tally.run(case, read)
    tally.close()  # whitespace and free text may change; the rest may not
    assert files(tmp_path) == before


def as_toml(values):
    """The values as TOML, odd ones by their JSON, which is often no TOML: that too may lie in a file."""
    try:
        return tomli_w.dumps(values).encode()
    except (TypeError, ValueError, AttributeError):
        return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()).encode()


@SHARES
def test_claims(tmp_path, share):
    tally = Tally("claims", share)
    record = records.save(tmp_path / "records", records.make(net={"sha256": sha256_of(b"a net")}))
    (tmp_path / "net").write_bytes(b"a net")
    (tmp_path / "secret").write_text("n = 1")
    path = make(record, tmp_path / "net", tmp_path / "claim")
    rules = path.parent / "rules.toml"
    rules.write_text(toml(TINY))
    plain = load_claim(path).model_dump(mode="json", by_alias=True, exclude_none=True)
    own = plain | {"protocol": {"name": "rules.toml", "sha256": TINY.sha256}}
    law = TINY.model_dump(mode="json", exclude_none=True)
    before = files(tmp_path)
    for case in tally.cases:
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

        tally.run(case, read)
    tally.close()
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
@SHARES
def test_outcomes_and_proposals(tmp_path, share):
    tally = Tally("arrays", share)
    record = records.make()
    path = records.save(tmp_path, record)
    raw, kept = outcomes_path(path), tmp_path / "proposals.npz"
    images = STORE.testing("digits", 20).images.numpy().astype(np.float32) / 255
    index = np.array([3, 5, 8])
    data = adversarials.pack(
        adversarials.Proposals(index, np.clip(images[index] + 0.1, 0, 1).astype(np.float32)),
        images[index],
        0.2,
        np.array([False, True, False]),
    )
    kept.write_bytes(data)
    seen = tmp_path / "pairs.npz"
    pixels = np.zeros((3, 1, 8, 8), np.uint8)
    shown = adversarials.pack_pairs(adversarials.Pairs(index, index, index, pixels, pixels))
    outcomes = load_arrays(raw, record.outcomes, "outcomes")
    stored = load_arrays(kept, sha256_of(data), "proposals")
    seen.write_bytes(shown)
    pictures = load_arrays(seen, sha256_of(shown), "pairs")
    before = files(tmp_path)
    for case in tally.cases:
        draw = random.Random(case)
        file, arrays = ((raw, outcomes), (kept, stored), (seen, pictures))[case % 3]
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
            if file == seen:
                assert len(adversarials.load_pairs(seen, sha256_of(changed)).index) <= 6
            elif file == kept:
                found = adversarials.load(kept, sha256_of(changed), images, 0.2)
                assert found.images.shape[1:] == images.shape[1:] and len(found.index) == len(found.images)
            else:
                found = recount(path, record.model_copy(update={"outcomes": sha256_of(changed)}))
                assert standing_of(found).sum() == record.score.robust

        tally.run(case, read)
    tally.close()
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


@SHARES
def test_nets(tmp_path, share):
    tally = Tally("nets", share)
    net = seal_state(tmp_path / "net", build("digits-cnn", info=STORE.info("digits")))
    data = net.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, about = unpack(data, "net")
    before = files(tmp_path)
    for case in tally.cases:
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
        tally.run(case, lambda: open_net(net))
    tally.close()
    assert files(tmp_path) == before


@SHARES
def test_protocols(tmp_path, share):
    tally, path = Tally("protocols", share), tmp_path / "rules.toml"
    law, small = TINY.model_dump(mode="json", exclude_none=True), SMALL.encode()
    for case in tally.cases:
        draw = random.Random(case)
        match case % 4:
            case 0:
                path.write_bytes(bent_bytes(as_toml(law) if draw.random() < 0.5 else small, draw))
            case 1:
                path.write_bytes(bent_bytes(small, draw) + as_toml(bent_value({"more": law}, draw)))
            case _:
                path.write_bytes(as_toml(bent_value(law, draw)))

        def read():
            rules = load(path)  # and what a run asks of it before it trains
            assert (
                len(rules.sha256) == 64
                and rules.threat.radius > 0
                and TrainingPlan(rules.training, rules.threat, 1).passes(1) > 0
            )
            assert all(len(eps) < 200 for eps in radii(rules.threat, 64))
            if rules.data == "digits":
                STORE.training(rules.data, validation=rules.validation, train=rules.train)
                STORE.testing(rules.data, rules.test)
                build(rules.model, info=STORE.info(rules.data))

        tally.run(case, read)
    tally.close()
    assert files(tmp_path) == ["rules.toml"]


def bent_pickle(data, draw):
    """A file of torch.save whose pickle is bent and whose archive is whole."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            held = old.read(member)
            if member.filename.endswith("data.pkl"):
                held = bent_bytes(held, draw)
                if draw.random() < 0.3:  # opcodes that build and repeat
                    at = draw.randrange(len(held) + 1)
                    held = (
                        held[:at] + bytes(draw.choice(b"}])(tas0h\x862\x85\x81RbuNK\1") for _ in range(40)) + held[at:]
                    )
            new.writestr(member.filename, held)
    return made.getvalue()


@pytest.mark.filterwarnings("ignore")
@SHARES
def test_checkpoints(tmp_path, share):
    tally, path = Tally("checkpoints", share), tmp_path / "theirs"
    state = build("digits-cnn", info=STORE.info("digits")).state_dict()
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    forms = (new.getvalue(), old.getvalue(), save_safetensors(dict(state)), pickle.dumps({"state_dict": 3}))
    head = json.loads(forms[2][8 : 8 + int.from_bytes(forms[2][:8], "little")])
    for case in tally.cases:
        draw = random.Random(case)
        match case % 5:
            case 0:
                path.write_bytes(bent_pickle(forms[0], draw))
            case 1:
                path.write_bytes(with_head(forms[2], bent_value(head, draw)))
            case 2:  # other tensors under sound names
                other = dict(state)
                name = draw.choice(sorted(other))
                kind = draw.choice((torch.float64, torch.int8, torch.complex64, torch.bool, torch.float16))
                other[draw.choice((name, f"{name}_mask", f"{name}_orig", f"module.{name}"))] = draw.choice(
                    (
                        other[name].to(kind),
                        other[name].reshape(-1),
                        torch.zeros(0),
                        torch.zeros(1).expand(10**9),
                        torch.full((3,), float("nan")),
                        other[name] + float("inf"),
                    )
                )
                buffer = io.BytesIO()
                torch.save(other, buffer)
                path.write_bytes(buffer.getvalue())
            case _:
                path.write_bytes(bent_bytes(draw.choice(forms), draw))

        def read():
            checkpoints.ingest(path, "digits-cnn", TINY, tmp_path / "out", STORE, sparsity=None)

        tally.run(case, read)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert files(tmp_path) == ["theirs"]
    tally.close()


@SHARES
def test_journals_and_times(tmp_path, share):
    """Whatever lies there, the same comes out: what was measured, or what is measured now."""
    tally, folder = Tally("journals", share), tmp_path / "journal"
    before, after = torch.tensor([True, True, False, True]), torch.tensor([True, False, False, False])
    images = torch.full((2, 1, 2, 2), 0.25)

    def entry():
        def measure():
            measured.append(1)
            return Finding(after, 2, 1, 256, 1000, images)

        return Journal(folder, ["net", 1]).entry("a", slice(0, 4), 7, before, measure, keep_images=True)

    measured: list[int] = []
    wanted, _ = entry()
    net = seal_state(tmp_path / "net", build("digits-cnn", info=STORE.info("digits")))
    header = open_net(net).header
    header = header.model_copy(update={"stages": records.make().cost.stages})
    save_effort(net, header, stages=(2.5,), processor=3.5, allowed=9.0, sandbox=False)
    sane = {path: path.read_bytes() for path in (*sorted(folder.iterdir()), tmp_path / TIMES)}
    for case in tally.cases:
        draw = random.Random(case)
        for path, data in sane.items():
            path.write_bytes(data)
        path = draw.choice(sorted(sane))
        if path.suffix == ".json" and draw.random() < 0.5:
            path.write_text(json.dumps(bent_value(json.loads(sane[path]), draw)))
        else:
            path.write_bytes(bent_bytes(sane[path], draw))
        measured.clear()

        def read():
            found, kept = entry()
            same = {"seconds": 0.0, "sha256": ""}
            assert found.model_copy(update=same) == wanted.model_copy(update=same) and torch.equal(kept, images)
            effort = effort_of(net, header)
            assert effort is None or (effort.stages, effort.processor, effort.allowed) == ((2.5,), 3.5, 9.0)
            if measured or effort is None:
                raise PrunebenchError("It was measured anew.")

        tally.run(case, read)
    tally.close()


# Command lines


VERBS = (
    "run",
    "plan",
    "train",
    "score",
    "import",
    "inspect",
    "rank",
    "sign",
    "site",
    "compare",
    "claim",
    "verify",
    "new",
    "check",
    "list",
    "doctor",
)
PATHS = (
    "none",
    ".",
    "zero",
    "pipe",
    "bent.json",
    "bent.toml",
    "bent.net",
    "bent.pt",
    "record.json",
    "folder",
    "a b",
    "x" * 300,
    "\x1b[2J",
    "-",
    "folder/../zero",
    "folder/none",
)
NUMBERS = ("0", "-1", "1e9", "9" * 30, "nan", "inf", "0.5", "", "\u0663", "1" * 5000, "x")
NAMES = (
    "imp",
    "imp:rounds=0",
    "imp:rounds=" + "9" * 5000,
    "imp:x=1",
    "no-such",
    "",
    ":",
    "=",
    "a:b:c",
    "none.py:A",
    "zero:A",
    "prunebench.bench.lab.lab:Lab",
    "os:system",
    "robustbench:x",
    "imp:rounds=2,rounds=3",
)
OPTIONS = {
    "--pruner": NAMES,
    "--sparsity": NUMBERS,
    "--seed": NUMBERS,
    "--out": PATHS,
    "--jobs": NUMBERS,
    "--threads": NUMBERS,
    "--engine": ("ray", "local", "x"),
    "--address": ("auto", "\x1b"),
    "--gpus-per-job": NUMBERS,
    "--examples": NUMBERS,
    "--epochs": NUMBERS,
    "--data": PATHS,
    "--device": ("cpu", "tpu", "cuda:99", "cuda", "\x1b"),
    "--quiet": (),
    "--keep-proposals": (),
    "--tensorboard": (),
    "--json": (),
    "--devices": NUMBERS,
    "--clean": NUMBERS,
    "--robust": NUMBERS,
    "--seconds": NUMBERS,
    "--protocol": ("digits-linf", "none.toml", "bent.toml", "zero.toml", "x"),
    "--parent": PATHS,
    "--also": NAMES,
    "--arithmetic": ("float32", "tf32", "\x1b"),
    "--mirror": PATHS,
    "--arch": ("digits-cnn", "resnet19", ""),
    "--label": NAMES,
    "--normalisation": ("none", "0.5/0.25", "0/0", "nan/1", "1/", ",", "1" * 5000),
    "--format": ("md,csv", "", ",", "x"),
    "--check": (),
    "--net": PATHS,
    "--key": PATHS,
    "--level": ("replay", "quick", "full", "x"),
    "--help": (),
    "--version": (),
    "-h": (),
    "--no-such": ("x",),
}
# What these verbs do for long has to be refused first, by one of these.
LONG = frozenset({"run", "plan", "train", "check", "score", "verify"})
BROKEN = (("--device", "tpu"), ("--threads", "0"), ("--no-such", "x"), ("--device", "cuda:99"))


# Lines that are sound but for a data set that is not there, or a bent file, and the options that each verb takes.
_GRID = ("--pruner", "--sparsity", "--seed", "--examples", "--epochs", "--data", "--device", "--threads")
SOUND = {
    "run": (["far.toml", "--pruner", "imp"], (*_GRID, "--out", "--jobs", "--address", "--gpus-per-job")),
    "plan": (["far.toml"], (*_GRID, "--jobs", "--devices", "--clean", "--robust", "--seconds")),
    "train": (["far.toml", "--pruner", "imp", "--sparsity", "0.9", "--out", "o"], (*_GRID[1:], "--out", "--pruner")),
    "score": (
        ["bent.net"],
        ("--protocol", "--examples", "--out", "--parent", "--also", "--arithmetic", "--mirror", *_GRID[5:]),
    ),
    "import": (
        ["bent.pt", "--arch", "digits-cnn", "--protocol", "digits-linf", "--out", "o"],
        ("--arch", "--protocol", "--out", "--sparsity", "--label", "--normalisation", "--data", "--json"),
    ),
    "inspect": (["bent.net"], ("--json",)),
    "rank": (["digits-linf"], ("--out", "--format", "--check")),
    "sign": (["record.json", "--key", "bent.net"], ("--key",)),
    "site": (["digits-linf", "--out", "o"], ("--out",)),
    "compare": (["record.json", "digits-linf/imp-s0.9-seed0.json"], ("--json",)),
    "claim": (["digits-linf/imp-s0.9-seed0.json", "--out", "o"], ("--net", "--out")),
    "verify": (["claim"], ("--level", "--seed", "--out", "--data", "--device", "--threads", "--json")),
    "new": (["mine"], ("--out",)),
    "check": (["no-such"], ("--threads", "--json")),
    "list": (["pruners"], ("--json",)),
    "doctor": ([], ("--data", "--json")),
}


def bent_line(draw):
    """A sound line with a few of its options written over, and sometimes an argument."""
    verb = draw.choice(sorted(SOUND))
    words, options = list(SOUND[verb][0]), SOUND[verb][1]
    if words and draw.random() < 0.2:
        at = draw.randrange(len(words))
        words[at] = draw.choice((*PATHS, *NUMBERS, *NAMES))
    for name in draw.choices(options, k=draw.choice((0, 1, 1, 2, 3))):
        words += [name, draw.choice(OPTIONS[name])] if OPTIONS[name] else [name]
    return [verb, *words, *(("--device", "tpu") if verb == "plan" else ())]  # else it would try for seconds


def command_line(draw):
    """A verb with arguments and options of whatever sort; none that is sound enough to work for long."""
    verb = draw.choice((*VERBS, *VERBS, "", "no-such", "--help"))
    words = [
        draw.choice((*PATHS, "digits-linf", "bent.toml", "imp", "no-such")) for _ in range(draw.choice((0, 1, 1, 2)))
    ]
    for _ in range(draw.randrange(6)):
        name = draw.choice(sorted(OPTIONS))
        words += [name, draw.choice(OPTIONS[name])] if OPTIONS[name] else [name]
    if verb in LONG:
        words += draw.choice(BROKEN)
    if draw.random() < 0.2:
        draw.shuffle(words)
    return [verb, *words]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_command_lines(tmp_path, share, monkeypatch):
    """Each ends with the exit code 0, 1 or 2, and what it says steers no terminal."""
    tally = Tally("lines", share)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(signature, "PASSPHRASE", 1.0)  # a key may be a pipe that nobody writes to
    threads = torch.get_num_threads()
    for case in tally.cases:
        draw, work = random.Random(case), tmp_path / "work"
        work.mkdir()
        monkeypatch.chdir(work)
        (work / "folder").mkdir()
        Path("zero").symlink_to("/dev/zero")
        Path("zero.toml").symlink_to("/dev/zero")
        os.mkfifo("pipe")
        record = records.save(work, records.make())
        Path("record.json").write_bytes(record.read_bytes())
        Path("far.toml").write_text('data = "folder:none"\n' + SMALL)
        Path("claim").mkdir()
        Path("claim/CLAIM.toml").write_bytes(bent_bytes(SMALL.encode(), draw))
        for name, data in (
            ("bent.json", record.read_bytes()),
            ("bent.toml", SMALL.encode()),
            ("bent.net", b"\0" * 99),
            ("bent.pt", b"\x80\x02}."),
        ):
            Path(name).write_bytes(bent_bytes(data, draw))
        words = bent_line(draw) if case % 3 else command_line(draw)

        def run(words=words):
            monkeypatch.setattr("sys.argv", ["prunebench", *words])
            said = io.StringIO()
            with redirect_stdout(said), redirect_stderr(said):
                try:
                    main.main()
                    code = 0
                except SystemExit as stop:
                    code = stop.code or 0
            assert code in (0, 1, 2) and "Traceback" not in said.getvalue(), words
            assert all(letter.isprintable() or letter == "\n" for letter in said.getvalue()), (words, said.getvalue())
            if code:
                raise PrunebenchError(f"It ended with {code}.")

        tally.run(f"{case} ({' '.join(words)[:300]!r})", run)
        torch.set_num_threads(threads)
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(work)
    assert files(tmp_path) == []
    tally.close()


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
    with pytest.raises(AssertionError, match="10 took too long"):
        survives(10, lambda: None, seconds=0)
    with pytest.raises(AssertionError, match="11 took too much memory"):
        survives(11, lambda: None, memory=0)
