"""The conformance suite: every built-in pruner passes, and for every check there is an offender that trips it alone."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from prunebench.bench.cli import main
from prunebench.bench.conformance import watch
from prunebench.bench.conformance.report import CHECKS, Check, Report
from prunebench.bench.conformance.suite import TASK, check
from prunebench.bench.errors import PrunebenchError
from prunebench.pruners import PRUNERS

HONEST = '''
import os, random, socket, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from prunebench.bench.attacks.pgd import pgd
from prunebench.bench import datasets
from prunebench.bench.data import Store, as_float
from prunebench.bench.mask import draw, keep_largest, keep_largest_by_layer, masked, rescaled, shuffled, uniform

@dataclass(frozen=True)
class Honest:
    """One training under a mask of the largest initial weights of each layer."""

    shuffle: bool = False

    def __call__(self, job, lab):
        self.before(lab)
        weights, keeps = lab.initial(), uniform(lab.shapes, lab.keep)
        masks = keep_largest_by_layer({name: weights[name].abs() for name in lab.shapes}, keeps)
        if self.shuffle:
            masks = self.moved(masks, lab)
        return self.after(lab.fit("train", rescaled(weights, masks), epochs=2, masks=masks).weights, lab)

    def before(self, lab):
        pass

    def moved(self, masks, lab):
        return shuffled(masks, lab.generator("shuffle"))

    def after(self, state, lab):
        return state

def noisy(state, generator):
    weight = state["1.9.bias"]
    return state | {"1.9.bias": weight + 1e-3 * torch.randn(weight.shape, generator=generator)}

def step(net, lab):
    F.cross_entropy(net(as_float(lab.train.images)), lab.train.labels).backward()

@dataclass(frozen=True)
class Offender(Honest):
    """Breaks one rule."""

'''

# check -> bodies of offenders; each must break this rule and no other.
OFFENDERS = {
    "options": [
        "x: list = None",
        "x: float = 1",
        "x: int | None = 3",
        "def __init__(self, **options):\n    object.__setattr__(self, 'shuffle', options.get('shuffle', False))",
    ],
    "runs": ["def after(self, state, lab):\n    raise KeyError('\\x1b[2Jlost')"],
    "loads": [
        "def after(self, state, lab):\n    return state | {'masks': torch.ones(1)}",
        "def after(self, state, lab):\n    return state | {'1.9.bias': torch.full((10,), float('nan'))}",
        "def after(self, state, lab):\n    return {k: v for k, v in state.items() if k != '0.mean'}",
        "def after(self, state, lab):\n    return list(state.items())",
    ],
    "sparsity": [
        "def after(self, state, lab):\n    return state | {'1.9.weight': torch.ones(10, 64)}",
        "def after(self, state, lab):\n    return {k: v * (v.dim() < 2) for k, v in state.items()}",  # a dead net
    ],
    "budget": [
        "def before(self, lab):\n    lab.fit('once', lab.initial(), epochs=11)",  # 11 + 2 epochs of 12
        "def before(self, lab):\n    lab.meter.charge('search', 10**9)",
        "def before(self, lab):\n    lab.meter.granted *= 2",
        "def after(self, state, lab):\n    lab.meter.stages.clear()\n    return state",
        "def before(self, lab):\n    step(lab.model(), lab)",  # trains beside the lab and pays nothing
    ],
    "deterministic": [
        "def after(self, state, lab):\n    return noisy(state, torch.Generator().manual_seed(time.time_ns() % 2**60))",
        "def after(self, state, lab):\n    return state | {'1.9.bias': torch.ones(10) * int.from_bytes(os.urandom(4))}",
        (
            "def after(self, state, lab):\n    keep = {v: k for k, v in enumerate(str(lab._backend.folder))}\n"
            "    return state | {'1.9.bias': state['1.9.bias'] + sum(keep.values())}"
        ),
    ],
    "random-state": [
        "def before(self, lab):\n    torch.rand(1)",
        "def before(self, lab):\n    torch.manual_seed(0)",
        "def before(self, lab):\n    np.random.rand()",
        "def before(self, lab):\n    random.random()",
    ],
    "test-split": [
        "def before(self, lab):\n    Store(Path('x')).testing('digits', 10)",
        "def before(self, lab):\n    np.loadtxt(datasets.digits_file(), delimiter=',')",
    ],
    "files": [
        "def before(self, lab):\n    Path('HERE/masks.txt').write_text('x')",
        "def before(self, lab):\n    Path('HERE/folder').mkdir(exist_ok=True)",
        "def before(self, lab):\n    os.close(os.open('HERE/raw', os.O_CREAT | os.O_WRONLY))",
        "def before(self, lab):\n    open('masks.txt', 'a').close()",
        "def before(self, lab):\n    torch.save({}, 'net.pt')",  # opened by compiled code: no audit event
        "def before(self, lab):\n    tempfile.NamedTemporaryFile().close()",
        "def before(self, lab):\n    subprocess.run([sys.executable, '-c', ''])",
        (
            "def before(self, lab):\n    try:\n        socket.create_connection(('127.0.0.1', 9), 0.01)\n"
            "    except OSError:\n        pass"
        ),
    ],
    "shuffle": [
        (
            "def moved(self, masks, lab):\n"
            "    scores = {n: torch.rand(m.shape, generator=lab.generator('s')) for n, m in masks.items()}\n"
            "    return keep_largest(scores, lab.keep)"
        ),
        "def moved(self, masks, lab):\n    return masks",
        ("def moved(self, masks, lab):\n    return masks | {'1.7.weight': torch.zeros_like(masks['1.7.weight'])}"),
    ],
}
PLANTED = [(name, body) for name, bodies in OFFENDERS.items() for body in bodies]


@pytest.fixture
def write(tmp_path):
    """Write a module with the class Offender and return the spec that names it."""

    def write(body: str) -> str:
        path = tmp_path / "offender.py"
        text = HONEST + "".join(f"    {line}\n" for line in body.replace("HERE", str(tmp_path)).splitlines())
        if "__init__" in body:
            text = text.replace(
                "@dataclass(frozen=True)\nclass Offender", "@dataclass(frozen=True, init=False)\nclass Offender"
            )
        path.write_text(text)
        return f"{path}:Offender"

    return write


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("honest") / "honest.py"
    path.write_text(HONEST + "    pass\n")
    return check(f"{path}:Honest")


def test_an_honest_pruner_holds_them_all_and_the_report_says_what_was_found(honest):
    assert honest.holds and not honest.broken
    assert [found.name for found in honest.checks] == list(CHECKS)
    text = str(honest)
    assert len(text.splitlines()) == len(CHECKS) + 1 and text.endswith("10 of 10 checks hold.")
    # 38160 - ceil(.937 * 38160 = 35755.92); 2 epochs of 2 steps of 64 images at 3 * 2 + 3 passes
    assert "keeps 2404 of 38160 weights; 0.937 allows at most 2404" in text
    assert f"spent {2 * 2 * 64 * 9:,} of {12 * 2 * 64 * 9:,} sample passes: train 2,304" in text


@pytest.mark.parametrize(("name", "body"), PLANTED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PLANTED)])
def test_an_offender_trips_its_check_and_no_other(name, body, write):
    report = check(write(body))
    assert report.broken == [name], str(report)
    assert not report.holds
    told = dict(zip(CHECKS, report.checks, strict=True))[name]
    assert CHECKS[name] in str(report) and told.found
    assert str(report).isascii() and "\x1b" not in str(report)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("random-state", "torch.manual_seed(0)"),
        ("test-split", "Store(Path('x')).testing('digits', 10)"),
        ("files", "Path(__file__).with_name('cache.txt').write_text('x')"),
    ],
)
def test_an_offence_while_the_module_is_imported(name, line, tmp_path):
    path = tmp_path / "early.py"
    path.write_text(f"{HONEST}    pass\n\n{line}\n")
    assert check(f"{path}:Honest").broken == [name]


def test_every_check_has_an_offender():
    assert OFFENDERS.keys() == CHECKS.keys()


def test_a_class_that_is_not_frozen(tmp_path):
    path = tmp_path / "loose.py"
    path.write_text(HONEST.replace("(frozen=True)", "").replace("class Offender", "class Mine") + "    pass\n")
    report = check(f"{path}:Honest")
    assert report.broken == ["options"] and "not frozen" in str(report)


def test_an_option_without_a_default_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "bare.py"
    path.write_text(HONEST.replace("shuffle: bool = False", "shuffle: bool"))
    with pytest.raises(PrunebenchError, match=r"refuses its options: .*missing"):
        check(f"{path}:Honest")


def test_work_beside_the_lab_is_allowed_when_it_is_paid_for(write):
    """128 images, forward and backward: 3 passes each; the price on paper is the price that is measured."""
    body = "def before(self, lab):\n    step(lab.model(), lab)\n    lab.meter.charge('search', {})"
    assert check(write(body.format(3 * 128))).holds
    report = check(write(body.format(2 * 128)))
    assert report.broken == ["budget"] and "paid for 256" in str(report)


def test_the_suite_leaves_everything_as_it_was(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = write("def before(self, lab):\n    torch.rand(1); np.random.rand(); random.random(); os.chdir('/')")
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate(), sorted(tmp_path.iterdir())  # noqa: NPY002
    check(spec)
    after = torch.get_rng_state(), repr(np.random.get_state()), random.getstate(), sorted(tmp_path.iterdir())  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert tmp_path.samefile(".") and not watch._watching


def test_reading_other_files_is_no_offence(write, tmp_path):
    """The reports of offences are for data sets and for writing: code may be imported late, and a file read."""
    (tmp_path / "notes.txt").write_text("x")
    assert check(write("def before(self, lab):\n    Path('HERE/notes.txt').read_text()\n    import colorsys")).holds


def test_what_could_not_be_asked_does_not_hold():
    assert not Report("x", (Check("runs", True, ""), Check("loads", None, ""))).holds
    assert Report("x", (Check("runs", True, ""), Check("loads", None, ""))).broken == []


@pytest.mark.parametrize("name", list(PRUNERS))
def test_every_built_in_pruner_passes(name):
    report = check(name)
    assert report.holds, str(report)


def test_the_task_is_no_official_protocol():
    assert not TASK.official


# The command


def prunebench(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["prunebench", *arguments])
    try:
        main.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_the_command_prints_a_line_a_check_and_ends_in_1_unless_all_hold(write, monkeypatch, capsys):
    assert prunebench(monkeypatch, "check", "random:shuffle=true") == 0
    assert capsys.readouterr().out.endswith("random:shuffle=true: 10 of 10 checks hold.\n")
    spec = write(OFFENDERS["sparsity"][0])
    assert prunebench(monkeypatch, "check", spec) == 1
    told = capsys.readouterr()
    assert "sparsity       FAILS" in told.out and told.err.count("\n") == 1
    assert prunebench(monkeypatch, "check", spec, "--json") == 1
    values = json.loads(capsys.readouterr().out)
    assert values["holds"] is False and [c["name"] for c in values["checks"] if not c["holds"]] == ["sparsity"]
    assert prunebench(monkeypatch, "check", "magnitud") == 1
    assert "did you mean 'magnitude'?" in capsys.readouterr().err
