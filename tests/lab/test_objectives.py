"""The table of objectives: one row for each that the rules know, at the price that is on paper."""

from __future__ import annotations

from typing import get_args

from prunebench.bench.lab.objectives import OBJECTIVES
from prunebench.bench.recipe import Objective


def test_every_objective_of_the_rules_has_a_row():
    assert set(OBJECTIVES) == set(get_args(Objective))


def test_prices_of_a_training_step():
    """An attack step is forward 1 + backward 2; so is the update, on two batches for TRADES.

    TRADES' attack starts with one forward at the clean images, and one-step training takes no other number of steps.
    """
    prices = {name: [objective.passes(steps) for steps in (1, 10)] for name, objective in OBJECTIVES.items()}
    assert prices == {"pgd": [6, 33], "trades": [10, 37], "fgsm-rs": [6, 6]}
