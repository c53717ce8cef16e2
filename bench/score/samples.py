"""The images, beside those of a test set, on which a referee checks a net: the same for every test set and split."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunebench.bench.protocol import Protocol
from prunebench.bench.seeds import derive


def corners(rules: Protocol, shape: Sequence[int]) -> list[Tensor]:
    """Two opposite corners of the ball around any image of `shape`, as offsets (1, *shape)."""
    draw = torch.Generator().manual_seed(derive(rules.attack_seed, "corner"))
    corner = (2 * torch.rand((1, *shape), generator=draw) - 1).sign()
    radius = rules.threat.radius / (math.sqrt(math.prod(shape)) if rules.threat.norm == "L2" else 1.0)
    return [radius * corner, -radius * corner]


def plain_and_noisy(rules: Protocol, shape: Sequence[int]) -> Tensor:
    """Three images of one grey and 29 of noise, float32 (32, *shape) in [0, 1]."""
    draw = torch.Generator().manual_seed(derive(rules.attack_seed, "sizes"))
    noise = torch.rand((29, *shape), generator=draw)
    flat = torch.tensor([0.0, 0.5, 1.0]).view(-1, *[1] * len(shape)).expand(-1, *shape)
    return torch.cat([flat, noise])
