"""How long a training step takes, by the ways of training that a card may take: which of them a net should take."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from prunebench.bench.data import Store
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.train import fit
from prunebench.bench.models import build
from prunebench.bench.protocol import Protocol

EPOCHS, STEPS = 4, 20  # the first epoch compiles; steps of an epoch, at most
WAYS: dict[str, dict[str, Any]] = {
    "graphs of the net": {"graphed": False},
    "one graph": {"graphed": True},
    "stem of 8 channels": {"graphed": False, "fill": 8},
}
HERE: dict[str, dict[str, Any]] = {"uncompiled": {}}  # without a card


def step_times(arch: str, rules: Protocol, store: Store, device: str) -> dict[str, float]:
    """Milliseconds per step of a training of `arch` by `rules`, by way; each way compiles anew."""
    recipe = rules.training.model_copy(update={"epochs": EPOCHS, "validate_every": EPOCHS})
    train, validation = store.training("", validation=1, train=min(rules.train or STEPS, STEPS * recipe.batch))
    splits = [split.to(torch.device(device)) for split in (train, validation)]
    plan, found = TrainingPlan(recipe, rules.threat, EPOCHS), {}
    for name, options in (WAYS if torch.device(device).type == "cuda" else HERE).items():
        with _warnings() as said:
            _, *times = fit(build(arch, info=store.info("")), plan, *splits, seed=0, **options).times
        found[f"{name}, which failed" if said else name] = 1e3 * statistics.median(times) / plan.batches(len(train))
    return found


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What training warns of: that it cannot compile the net, or not record its steps."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("prunebench").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("prunebench").removeHandler(handler)
