"""Checks a training's real cost: the kernel's count of processor time against the price of its charged passes."""

from __future__ import annotations

import time
from functools import cache

import torch

from prunebench.bench.data import Store
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.train import fit
from prunebench.bench.models import build
from prunebench.bench.protocol import Protocol

MARGIN = 3.0  # times the price of the passes: searches and sparse nets cost up to 1.6 times as much as dense training
FIXED = 10.0  # seconds of overhead: imports, data, kernels, files
TRIED = 0.3  # processor seconds that a timing must take to be trusted


def allowed(passes: int, price: float) -> float:
    """The processor seconds that a training charged for `passes` may take, at `price` seconds per pass."""
    return MARGIN * passes * price + FIXED


@cache
def price(protocol: Protocol, store: Store, threads: int) -> float:
    """Processor seconds per sample pass of the protocol's training on this machine, from a short dense training.

    `threads`: the process's thread count, on which the result depends. Pruned nets train faster, so the price is an
    upper bound for the common training.
    """
    train, validation = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
    info, images = store.info(protocol.data), min(16, len(train))
    plan = TrainingPlan(protocol.training.model_copy(update={"validate_every": 2**31}), protocol.threat, 2, stop=1)
    with torch.random.fork_rng(devices=[]):
        while True:
            part = train.take(slice(0, images))
            began = time.process_time()
            fit(build(protocol.model, info=info), plan, part, validation.take(slice(0, 16)), seed=0)
            seconds = time.process_time() - began
            if images == len(train) or (seconds > TRIED and images > 16):
                return seconds / plan.passes(images)
            images = min(len(train), max(2 * images, round(images * min(8.0, 1.2 * TRIED / max(seconds, 1e-3)))))
