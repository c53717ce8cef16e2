"""A file of a run folder that is damaged or gone costs time: what comes out is the same, or a refusal in a sentence.

A byte flipped, a file cut short, a file missing, at random places of every kind of file, in folders of three ages:
scored, about to be recorded, and in the middle of its training.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid.task import Step, Task
from prunebench.bench.player.handover import Play
from prunebench.bench.player.process import play
from prunebench.bench.record import Hashed, Record, load_record
from prunebench.bench.score.journal import Entry
from tests.support import records
from tests.support.nets import STORE, WEAK, changed, job
from tools.kill_and_resume import timeless

RULES = changed(name="damaged", train=64, validation=16, test=8, shard=4, epochs=3, batch=32, validate_every=1)
RESULTS = ("net.safetensors", "record.outcomes.npz", "record.pairs.npz", "record.proposals.npz")


class Cut(BaseException):
    """The process ends here."""


def task_in(folder: Path) -> Task:
    """A job with two stages of training, whose adversarial images are kept."""
    return Task(
        "imp:rounds=2",
        job("imp:rounds=2", 0.9),
        RULES,
        folder / "job",
        folder / "stages",
        STORE,
        "cpu",
        1,
        None,
        False,
        True,
        None,
        False,
    )


def resumed(folder: Path) -> str:
    """Take the steps of the job in `folder`, as a run does; returns a sentence when it is refused, else nothing."""
    task = task_in(folder)
    for step in (Step(task, "train"), Step(task, "attack", 0), Step(task, "attack", 1), Step(task, "record")):
        ended = step(lambda *_: None)
        if ended is not None and ended.how in ("done", "kept"):
            return ""
        if ended is not None:
            assert ended.how == "refused" or "details are in" not in ended.why, ended.why
            return ended.why
    raise AssertionError("the job has not ended")


def result(folder: Path) -> dict[str, object]:
    """All that a run publishes, times aside."""
    record = load_record(folder / "job" / "record.json")
    assert isinstance(record, Record) and not (folder / "job" / "refusal.json").exists()
    return {name: (folder / "job" / name).read_bytes() for name in RESULTS} | {"record": timeless(record)}


@pytest.fixture
def ages(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Three folders of one job: scored, trained and attacked, and cut off in its second stage."""
    weak = {name: Listed(partial(pgd, steps=1, step_size=0.05), 3) for name in WEAK}
    monkeypatch.setitem(SUITES, "standard", replace(SUITES["standard"], weak=weak))
    made = {name: tmp_path / name for name in ("scored", "attacked", "cut")}
    assert not resumed(made["scored"])
    shutil.copytree(made["scored"], made["attacked"])
    for path in made["attacked"].glob("job/record.*"):
        path.unlink()
    records.refusal().save(made["attacked"] / "job" / "refusal.json")  # as an earlier scoring may have left it

    def send(*message: object) -> None:
        if all(list((made["cut"] / "stages").rglob(f"{name}.safetensors")) for name in ("done", "partial")):
            raise Cut

    task = task_in(made["cut"])
    asked = Play(task.spec, task.job, RULES, STORE, task.folder, task.stages, "cpu", torch.get_num_threads(), False)
    with pytest.raises(Cut):
        play(asked, send)
    return made


def files(folder: Path) -> list[Path]:
    """The files that a run reads again, in an order of their own."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def kind(path: Path) -> str:
    """Files of one kind are damaged as often as those of any other."""
    return f"journal{path.suffix}" if path.parent.name == "journal" else path.name


def damage(folder: Path, draw: random.Random) -> str:
    """Flip a byte of a file, cut it, or take it away; returns what was done."""
    by_kind: dict[str, list[Path]] = {}
    for path in files(folder):
        by_kind.setdefault(kind(path), []).append(path)
    path = draw.choice(by_kind[draw.choice(sorted(by_kind))])
    data, at = path.read_bytes(), draw.randrange(path.stat().st_size)
    how = draw.choice(("flipped", "flipped", "cut", "missing"))
    if how == "missing":
        path.unlink()
    else:
        bent = bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :] if how == "flipped" else b""
        path.write_bytes(data[:at] + bent)
    return f"{path.relative_to(folder)} {how} at {at}"


def damaged_at(places: range, ages: dict[str, Path], tmp_path: Path) -> list[str]:
    """What was damaged and gave another result, silently."""
    wanted, silent = result(ages["scored"]), []
    for place in places:
        draw = random.Random(place)
        age = sorted(ages)[place % 3]
        folder = shutil.copytree(ages[age], tmp_path / "again")
        what = f"place {place}, {age}: {damage(folder, draw)}"
        try:
            if not resumed(folder) and result(folder) != wanted:
                silent.append(what)
        except PrunebenchError:
            pass
        except BaseException as error:
            raise AssertionError(what) from error
        shutil.rmtree(folder)
    return silent


def test_damage_at_10_places(ages, tmp_path):
    for name in ("attacked", "cut"):  # without any, all three end in the same
        folder = shutil.copytree(ages[name], tmp_path / "sound")
        assert not resumed(folder) and result(folder) == result(ages["scored"])
        shutil.rmtree(folder)
    assert {kind(path) for folder in ages.values() for path in files(folder)} == {
        "done.safetensors",
        "journal.json",
        "journal.safetensors",
        "net.safetensors",
        "partial.safetensors",
        "record.json",
        "record.outcomes.npz",
        "record.pairs.npz",
        "record.proposals.npz",
        "refusal.json",
        "times.json",
    }
    assert damaged_at(range(10), ages, tmp_path) == []


@pytest.mark.slow
def test_damage_at_200_places(ages, tmp_path):
    """The whole number: `pytest tests/system/test_damage.py -m slow`, two minutes."""
    assert damaged_at(range(200), ages, tmp_path) == []


def test_twin_a_journal_that_believes_what_it_reads(ages, tmp_path, monkeypatch):
    """An entry whose passes were changed gives another record when nobody looks at its hash."""
    folder = ages["attacked"]
    path = sorted((folder / "job" / "journal").glob("*.json"))[0]
    entry = Entry.model_validate_json(path.read_text())
    entry.model_copy(update={"passes": entry.passes + 1}).save(path)
    blind = shutil.copytree(folder, tmp_path / "blind")
    assert not resumed(folder) and result(folder) == result(ages["scored"])
    honest = Hashed.own_sha256
    monkeypatch.setattr(Hashed, "own_sha256", property(lambda self: self.sha256))
    assert not resumed(blind)
    monkeypatch.setattr(Hashed, "own_sha256", honest)
    record = load_record_unsealed(blind)
    assert record.score == load_record(ages["scored"] / "job" / "record.json").score
    assert record.cost.score_passes == load_record(ages["scored"] / "job" / "record.json").cost.score_passes + 1


def load_record_unsealed(folder: Path) -> Record:
    """A record whose own hash was not computed."""
    return Record.model_validate_json((folder / "job" / "record.json").read_text())
