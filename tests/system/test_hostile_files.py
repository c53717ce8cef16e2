"""Hostile files in the place of every kind of file that is read: one sentence each, at once, and nothing is lost.

`tests/test_files.py` has the reader's own tests; these show that each kind of file goes through it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from prunebench.bench import adversarials
from prunebench.bench.beside import digest_of
from prunebench.bench.checkpoint import LARGEST_HEAD, Header, open_net
from prunebench.bench.claims.claim import load_claim
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.interop import checkpoints
from prunebench.bench.job import Job
from prunebench.bench.lab.stages import load_stage
from prunebench.bench.models import LARGEST, build, size
from prunebench.bench.outcomes import complete, outcomes_path, pairs_path, recount
from prunebench.bench.protocol import PROTOCOLS, from_values, load
from prunebench.bench.recipe import EPOCHS
from prunebench.bench.record import load_record
from prunebench.bench.score.effort import TIMES, effort_of, save_effort
from prunebench.bench.score.journal import Finding, Journal
from prunebench.leaderboard.site.folder import MANIFEST, _listed
from tests.support import records
from tests.support.nets import STORE, TINY, forged, seal_state


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net file of the digits."""
    return seal_state(tmp_path_factory.mktemp("net") / "net", build("digits-cnn", info=STORE.info("digits")))


def recounted(path: Path) -> object:
    """A record whose outcomes lie at `path`."""
    record = records.save(path.parent, records.make())
    outcomes_path(record).unlink()
    outcomes_path(record).symlink_to(path)
    return recount(record, load_record(record))


READERS = {
    "record": load_record,
    "outcomes": recounted,
    "pairs": lambda path: adversarials.load_pairs(path, "0" * 64),
    "proposals": lambda path: adversarials.load(path, "0" * 64, torch.zeros(1, 1, 8, 8).numpy(), 0.2),
    "protocol": load,
    "claim": load_claim,
    "net": open_net,
    "checkpoint": lambda path: checkpoints.ingest(path, "digits-cnn", TINY, path.parent / "out", STORE),
}
PLACES = {"endless": lambda path: path.symlink_to("/dev/zero"), "pipe": os.mkfifo, "folder": Path.mkdir}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_file_is_one_sentence(kind, place, tmp_path):
    """Before: 7 to 9 GiB and a hang for the device, a hang for the pipe, for all but the checkpoint."""
    path = tmp_path / "a.toml"
    PLACES[place](path)
    with pytest.raises(PrunebenchError, match="not a regular file"):
        READERS[kind](path)


@pytest.mark.parametrize("place", PLACES)
def test_what_may_be_missing_counts_as_missing_when_it_is_no_file(place, sealed, tmp_path):
    """Times, stages, journals, caches and manifests that cannot be read are made anew."""
    header = open_net(sealed).header
    for name in (MANIFEST, TIMES, "done.safetensors"):
        PLACES[place](tmp_path / name)
    assert _listed(tmp_path / MANIFEST) == frozenset()
    assert effort_of(tmp_path / "net", header) is None
    assert load_stage(tmp_path / "done.safetensors") is None
    assert digest_of(tmp_path / TIMES) is None
    calls = []

    def measure():
        calls.append(1)
        return Finding(torch.tensor([True]), 0, 0, 1, 1, torch.zeros(0, 1, 8, 8))

    PLACES[place](tmp_path / "shard-00000-00001-a.json")
    if place != "folder":  # a folder cannot be replaced by a file
        entry, _ = Journal(tmp_path, []).entry("a", slice(0, 1), 0, torch.tensor([True]), measure)
        again, _ = Journal(tmp_path, []).entry("a", slice(0, 1), 0, torch.tensor([True]), measure)
        assert len(calls) == 1 and entry == again


def test_a_cache_of_images_that_is_no_file_is_decoded_anew(tmp_path):
    image = tmp_path / "data" / "pets" / "train" / "cat" / "1.png"
    for half in ("train", "test"):
        for name in ("cat", "dog"):
            path = image.parents[2] / half / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(path)
    store = Store(tmp_path / "data", tmp_path / "cache")
    sound = store.testing("folder:pets").sha256
    (kept,) = (tmp_path / "cache").iterdir()
    kept.unlink()
    os.mkfifo(kept)
    assert store.testing("folder:pets").sha256 == sound and kept.is_file()
    os.mkfifo(image.with_name("2.png"))
    with pytest.raises(PrunebenchError, match="neither a file nor a folder"):
        store.info("folder:pets")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-9],
        lambda data: b"[]",
        lambda data: b"null",
        lambda data: b"\xff",
        lambda data: data.replace(b"2.5", b"2.6"),
        lambda data: data.replace(b"2.5", b'"a"'),
        lambda data: data.replace(b"2.5", b"2.5, 1"),
        lambda data: b"{" * 9999,
        lambda data: b" " * (2**20 + 1),
    ],
)
def test_times_that_were_damaged_are_unknown(spoil, sealed, tmp_path):
    """Before: 10 of 12 such files ended in a traceback."""
    stages = ({"name": "fit", "passes": 1, "seconds": None},)
    header = Header.model_validate(open_net(sealed).header.model_dump() | {"stages": stages})
    net = tmp_path / "net"
    save_effort(net, header, stages=(2.5,), processor=3.5, allowed=9.0, sandbox=False)
    assert effort_of(net, header).stages == (2.5,)
    path = tmp_path / TIMES
    path.write_bytes(spoil(path.read_bytes()))
    assert effort_of(net, header) is None


@pytest.mark.parametrize("what", ["pairs", "proposals"])
def test_a_record_is_complete_with_all_that_it_names(what, tmp_path):
    path = records.save(tmp_path, records.make(**{what: sha256_of(b"images")}))
    beside = pairs_path(path).with_suffix("").with_suffix(f".{what}.npz")
    recount(path, load_record(path))
    for data in (None, b"images", b"imagez"):
        if data is not None:
            write_bytes(beside, data)
        if data == b"images":
            complete(path, load_record(path))
            continue
        with pytest.raises(PrunebenchError, match=f"the {what} of .*score the net again"):
            complete(path, load_record(path))


# Values that are beyond all sense


def tiny(**changes):
    values = TINY.model_dump(mode="json")
    for key in list(changes):
        if key in values["training"]:
            values["training"][key] = changes.pop(key)
    return values | changes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threat": {"norm": "Linf", "eps": "0." + "0" * 399 + "1"}}, "threat.eps"),
        ({"threat": {"norm": "Linf", "eps": "0." + "3" * 4290}}, "threat.eps"),
        ({"threat": {"norm": "Linf", "eps": "1/10000000"}}, "below 1/1000000"),
        ({"step_size": "0." + "3" * 70}, "72 characters; write an exact number with at most 64"),
        ({"units": 1e308}, "units = 1e+308"),
        ({"units": 5000.0}, "5000 units of 3 epochs are more than 10000 epochs per net; lower units"),
        ({"epochs": 10**9}, "training.epochs = 1000000000"),
        ({"steps": 10**9}, "training.steps"),
        ({"batch": 2**40}, "training.batch"),
        ({"lr": 1e308}, "training.lr"),
        ({"beta": 1e308}, "training.beta"),
        ({"validation": 10**12}, "validation"),
        ({"data": "x" * 201}, "data"),
        ({"data": "folder:../../etc"}, "outside the data folder"),
        ({"data": "folder:/etc"}, "outside the data folder"),
        ({"data": "folder:a\x1b[2J"}, "outside the data folder"),
        ({"model": "x" * 65}, "model"),
        ({"seeds": list(range(1001))}, "seeds"),
    ],
)
def test_values_beyond_all_sense_are_refused_by_name(change, said):
    assert from_values(tiny(), "sound") == TINY
    with pytest.raises(PrunebenchError, match=r"breaks the rules: .*; correct it\.") as error:
        from_values(tiny(**change), "x")
    assert said in str(error.value)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_our_protocols_are_a_hundred_times_below_the_limit(name):
    rules = PROTOCOLS[name]
    assert rules.units * rules.training.epochs * 100 <= EPOCHS


def test_a_billion_epochs_are_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    """Before: no word, and centuries."""
    from prunebench.bench.cli import main

    words = ["train", "digits-linf", "--pruner", "dense", "--epochs", "1000000000", "--out", str(tmp_path / "a")]
    monkeypatch.setattr("sys.argv", ["prunebench", *words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    said = capsys.readouterr().err
    assert stop.value.code == 1 and "training.epochs = 1000000000: input should be less than or equal to 10000" in said
    assert not (tmp_path / "a").exists()


def test_a_net_of_many_weights_is_refused_before_memory_is_set_aside(sealed, tmp_path):
    """Before: a file of 67 MB took 5 GiB."""
    path = forged(sealed, tmp_path / "net", shape=[1, 1024, 1024])
    with pytest.raises(PrunebenchError, match=rf"would have 536876474 weights .* more than {LARGEST}"):
        open_net(path)
    assert size("digits-cnn", 10, (1, 8, 8)) == sum(p.numel() for p in build("digits-cnn").parameters())
    assert all(4 * size(name, 100, (3, 32, 32)) < LARGEST for name in ("resnet18", "vgg16-bn", "mnist-cnn"))


def test_a_header_of_many_bytes_is_not_parsed(sealed, tmp_path, monkeypatch):
    data = sealed.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    head["__metadata__"]["prunebench"] += " " * LARGEST_HEAD
    text = json.dumps(head).encode()
    (tmp_path / "net").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    monkeypatch.setattr("prunebench.bench.checkpoint.load", lambda data: pytest.fail("it was parsed"))
    with pytest.raises(PrunebenchError, match="its header has"):
        open_net(tmp_path / "net")


def test_names_with_control_characters_are_shown_escaped(tmp_path):
    for read in (load_record, open_net, lambda path: load(f"{path}.toml")):
        with pytest.raises(PrunebenchError) as error:
            read(tmp_path / "a\x1b[2J\nb\u202e")
        assert str(error.value).isprintable() and r"\x1b[2J" in str(error.value)


def test_a_job_of_a_long_name_has_a_file_name_of_bounded_length():
    long = [Job(pruner="x" * n, sparsity=0.9, seed=0).name for n in (149, 150, 151, 5000, 5001)]
    assert len(set(long)) == 5 and max(map(len, long)) < 200
    assert Job(pruner="imp", sparsity=0.9, seed=0).name == "imp-s0.9-seed0"


def test_toml_of_a_million_keys_and_deep_json(tmp_path):
    (tmp_path / "a.toml").write_text("".join(f"k{i}=1\n" for i in range(1_000_000)))
    with pytest.raises(PrunebenchError, match="larger than 65536 bytes"):
        load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("a" + ".a" * 30_000 + " = 1")
    with pytest.raises(PrunebenchError, match="a key of more than 16 parts"):
        load(tmp_path / "b.toml")
    (tmp_path / "a.json").write_text('{"a":' * 100_000)
    with pytest.raises(PrunebenchError, match="nests deeper than 32"):
        load_record(tmp_path / "a.json")
