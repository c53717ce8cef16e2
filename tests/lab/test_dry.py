"""Dry runs: how many epochs a pruner needs, and stages that are refused before any training."""

from __future__ import annotations

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid import task
from prunebench.bench.grid.run import job_of
from prunebench.bench.job import Job
from prunebench.bench.lab.dry import Dry, least_epochs, needs
from prunebench.bench.lab.lab import Lab
from prunebench.pruners import resolve
from prunebench.pruners.at_init import GraSP
from prunebench.pruners.baselines import Magnitude
from prunebench.pruners.imp import IMP
from tests.support.nets import STORE, changed

LATE = """from dataclasses import dataclass

@dataclass(frozen=True)
class Late:
    def __call__(self, job, lab):
        first = lab.fit("one", lab.initial(), epochs=lab.epochs).weights
        return lab.fit("two", first, epochs=1).weights
"""


def dry_lab(units, epochs, sparsity=0.9):
    rules = changed(units=units, epochs=epochs, train=64, batch=32)
    job = Job(pruner="mine", options={}, sparsity=sparsity, seed=0)
    return Lab(job, rules, STORE, Dry(), resolve=lambda spec: resolve(spec).pruner)


@pytest.mark.parametrize(
    ("pruner", "least"),
    [
        (IMP(), 3),  # one epoch to rewind to, one of search, one for the ticket
        (IMP(rewind=3), 5),  # 3 + 1 + 1
        (Magnitude(), 2),
        # 4 calibrations and scores of 32 images cost 4 * 32 * (1 + 9 + 3 + 9 + 9), an epoch 64 * (9 + 3): 5.2 epochs
        (GraSP(), 7),
    ],
    ids=["imp", "imp-rewind", "magnitude", "grasp"],
)
def test_the_least_epochs_on_paper(pruner, least):
    lab = dry_lab(1.0, 1)
    assert least_epochs(lab, pruner) == least
    assert lab.meter.spent == 0 and lab.epochs == 1  # the lab itself is not spent
    assert least_epochs(dry_lab(1.0, least), pruner) is None  # enough
    assert needs(lab, pruner).endswith(
        f"needs at least {least} epochs in its budget here, which holds 1 (1 units of 1): use {least} or more per unit."
    )
    assert needs(dry_lab(2.0, 0 + 1), IMP(rewind=3)).endswith("(2 units of 1): use 3 or more per unit.")  # 5 / 2


def test_what_no_budget_mends_needs_no_epochs():
    def refuse(job, lab):
        raise PrunebenchError("Never.")

    assert least_epochs(dry_lab(1.0, 1), refuse) is None and needs(dry_lab(1.0, 1), refuse) == ""


@pytest.fixture
def late(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    return f"{tmp_path / 'late.py'}:Late"


def train(spec, folder):
    rules, resolved = changed(units=2.0, epochs=1, train=64, batch=32), resolve(spec)
    with pytest.raises(PrunebenchError) as error:
        task.train(spec, job_of(resolved, 0.9, 0), rules, folder / "net", folder / "stages", STORE, device="cpu")
    return str(error.value)


def test_a_stage_that_does_not_fit_is_refused_before_any_training(late, tmp_path):
    """An epoch of 64 images with three steps costs 64 * 12 sample passes; the first stage takes both."""
    said = train(late, tmp_path)
    assert said.startswith("Stage 'two' costs 768 sample passes, but only 0 of 1536 remain")
    assert not list((tmp_path / "stages").rglob("*"))


def test_without_the_rehearsal_the_first_stage_would_be_trained(late, tmp_path, monkeypatch):
    """The twin."""
    monkeypatch.setattr(task, "refuse_short", lambda play: None)
    assert train(late, tmp_path).startswith("Stage 'two' costs 768")
    assert list((tmp_path / "stages").rglob("*.safetensors"))
