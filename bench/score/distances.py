"""The smallest perturbation found for each image, whatever the threat's eps, re-measured by the referee."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from prunebench.bench.attacks.base import Attack, Model
from prunebench.bench.attacks.fmn import inside, lengths, nearest
from prunebench.bench.beyond import Distances, median
from prunebench.bench.data import Split, as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

_EVERYTHING = {"Linf": "1", "L2": "1000"}  # the largest eps of a threat: a ball around all of [0, 1]
_FURTHER = 1.01  # a proposal is stretched by this, beyond the roundings of accelerated kernels
_HALVINGS = 10


def measure_distances(
    referee: Referee, test: Split, clean: Tensor, robust: Tensor, seed: int
) -> tuple[Distances, dict[str, np.ndarray]]:
    """The distance of each image of `test` to the nearest point found that fools the net, in the protocol's norm.

    `clean`, `robust`: bool (n,) on the CPU, right when clean and survivors of AutoAttack. The minimum-norm attack
    proposes points (`attacks.fmn`); a distance is that of the float32 image which the referee measured on the plain
    net. An image that AutoAttack fools has a fooling point inside the ball, so its distance is at most eps.
    """
    found = torch.zeros(len(test), dtype=torch.float64)
    for number, shard in enumerate(referee.shards(len(test))):
        right = clean[shard].nonzero().squeeze(1)
        if len(right):
            part = test.take(shard).take(right)
            stream = derive(seed, f"shard-{number}")
            found[shard.start + right] = _measured(referee, as_float(part.images), part.labels, stream)
    known = clean & ~robust
    found[known] = found[known].clamp_max(referee.rules.threat.radius)
    distances = found.float().numpy()
    return Distances(attack="fmn", median=median(distances)), {"distance": distances}


def _measured(referee: Referee, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """The distances of `images`, float64 (n,), infinite where no proposal fools the net.

    The proposals are drawn in towards their images by bisection, each point measured like a proposal.
    """
    norm = referee.rules.threat.norm
    everything = Threat(norm=norm, eps=_EVERYTHING[norm])
    distances = torch.full((len(images),), math.inf, dtype=torch.float64)

    def measured(attack: Attack) -> tuple[Tensor, Tensor]:
        found = referee.fooled(attack, images, labels, seed, everything)
        referee.passes += found.passes
        offsets = (found.images.double() - images.double()).flatten(1)
        distances[found.fooled] = torch.minimum(distances, lengths(offsets, norm))[found.fooled]
        return found.fooled, offsets

    _, offsets = measured(_stretched)
    low, high = torch.zeros(len(images), dtype=torch.float64), lengths(offsets, norm)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        points = images + inside(offsets, middle, norm).float().view_as(images)
        fooled, _ = measured(_replay(points))
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return distances


def _stretched(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """The proposals of `nearest`, moved outwards a little."""
    proposals = nearest(model, images, labels, threat, generator=generator)
    return (images + _FURTHER * (proposals - images)).clamp(0.0, 1.0)


def _replay(points: Tensor) -> Attack:
    """An attack that proposes `points` and asks nothing."""

    def attack(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
        return points.to(images.device)

    return attack
