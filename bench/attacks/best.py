"""The suite `best`: attacks on the images that survive AutoAttack *standard*, for the best-known number beside it.

The short attacks run on every survivor. Most follow gradients that leak through units which are off, since the nets of
this benchmark have few units left. The long attacks run where the short ones, Square or vanishing gradients show that
AutoAttack's gradients did not lead where the net is weak.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from prunebench.bench.attacks import apgd, targets
from prunebench.bench.attacks import square as squares
from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.margins import STEPS, apgd_pm, margin_decomposition
from prunebench.bench.attacks.suite import Listed, Pursuit, Shape
from prunebench.bench.attacks.targets import every_target, long_malt, malt
from prunebench.bench.executor.surrogate import Surrogate
from prunebench.bench.protocol import Threat

QUERIES = 20_000


def long_square(
    model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator, salt: int
) -> Tensor:
    """Square attack with 20,000 queries; `salt` tells two runs apart."""
    return squares.square(model, images, labels, threat, generator.initial_seed() ^ salt, QUERIES)


def _queries(threat: Threat, shape: Shape) -> int:
    return squares.price_of(threat.norm, shape, QUERIES)


_CLIMB = 3 * (apgd.STEPS + 1) + 1
_LONG = targets.passes(1, targets.RESTARTS, targets.LONG)
_SPLIT = 2 * 3 * (STEPS + 1) + 1

BEST = Pursuit(
    name="best-1",
    short={
        "apgd-pm": Listed(apgd_pm, _CLIMB, Surrogate(leak=0.01)),
        "md": Listed(margin_decomposition, _SPLIT),
        "malt": Listed(malt, targets.passes(targets.TARGETS)),
        "malt-leak-.01": Listed(malt, targets.passes(targets.TARGETS), Surrogate(leak=0.01)),
        "apgd-ce-leak-.05": Listed(apgd.apgd_ce, _CLIMB, Surrogate(leak=0.05)),
        "md-leak-.05": Listed(margin_decomposition, _SPLIT, Surrogate(leak=0.05)),
        "malt-leak-.2": Listed(malt, targets.passes(targets.TARGETS), Surrogate(leak=0.2)),
    },
    long={
        "targets-leak-.05": Listed(every_target, targets.passes(targets.CANDIDATES), Surrogate(leak=0.05)),
        "targets-leak-1": Listed(every_target, targets.passes(targets.CANDIDATES), Surrogate(leak=1.0)),
        "malt-soft-.3": Listed(malt, targets.passes(targets.TARGETS), Surrogate(soft=0.3)),
        "malt-soft-1": Listed(malt, targets.passes(targets.TARGETS), Surrogate(soft=1.0)),
        "long-dlr-t": Listed(long_malt, _LONG),
        "long-dlr-t-leak-.05": Listed(long_malt, _LONG, Surrogate(leak=0.05)),
        "square-20k": Listed(partial(long_square, salt=1), _queries),
        "square-20k-again": Listed(partial(long_square, salt=2), _queries),
    },
    trigger=0.04,
)
