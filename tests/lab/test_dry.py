"""Dry runs: how many epochs a pruner needs."""

from __future__ import annotations

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.dry import Dry, least_epochs, needs
from prunebench.bench.lab.lab import Lab
from prunebench.pruners import resolve
from prunebench.pruners.at_init import GraSP
from prunebench.pruners.baselines import Magnitude
from prunebench.pruners.imp import IMP
from tests.support.nets import STORE, changed


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
        f"needs at least {least} epochs in its budget here, which holds 1 (1 unit of 1): use {least} or more per unit."
    )
    assert needs(dry_lab(2.0, 0 + 1), IMP(rewind=3)).endswith("(2 units of 1): use 3 or more per unit.")  # 5 / 2


def test_what_no_budget_mends_needs_no_epochs():
    def refuse(job, lab):
        raise PrunebenchError("Never.")

    assert least_epochs(dry_lab(1.0, 1), refuse) is None and needs(dry_lab(1.0, 1), refuse) == ""
