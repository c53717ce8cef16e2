"""The interface of all attacks: a function `attack(model, images, labels, threat, *, generator) -> proposals`.

`images`: float32 (n, c, h, w) in [0, 1]. `labels`: int64 (n,). `model` maps images to logits (n, classes). Proposals
have the shape of the images; an image that an attack gives up on comes back unchanged. An attack only proposes: what
it reports about success never enters a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol as Interface

import torch
from torch import Tensor

from prunebench.bench.protocol import Threat

Model = Callable[[Tensor], Tensor]  # images (n, c, h, w) to logits (n, classes)

_SPLIT = 2**15  # values from which on torch splits a single sum between threads (ATen's GRAIN_SIZE)
_VALUES = {"cpu": 2**18, "cuda": 2**20}  # 1 MB fits in a CPU's cache; a GPU needs more work at once


class Attack(Interface):
    """The signature of every attack."""

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator
    ) -> Tensor: ...


def within(proposals: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """Project `proposals` to the ball of `threat` around `images` and to [0, 1]; points inside stay unchanged.

    The radius is eps * (1 + 1e-6): in float32 `x + eps` itself leaves the exact ball for 7.5 % of the pixels.
    """
    radius = threat.radius * (1 + 1e-6)
    if threat.norm == "Linf":
        inside = torch.clamp(proposals, images - radius, images + radius)
    else:
        offsets = proposals - images
        length = offsets.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        inside = torch.where(length > radius, images + offsets * (radius / length), proposals)
    return inside.clamp(0.0, 1.0)


def at_once(images: Tensor) -> int:
    """The number of points shaped like one of `images` (n, c, h, w) that an attack free to choose processes at once."""
    return max(32, _VALUES.get(images.device.type, 2**18) // math.prod(images.shape[1:]) // 32 * 32)


def lanes(model: Model, images: Tensor) -> int:
    """How many points shaped like one of `images` the model answers in the time of one, with no bit changed by others.

    A model says so by its method `lanes`, which takes the shape (c, h, w); one without it gives 1. So do large images:
    torch adds up a single one in another order than one among others.
    """
    known = getattr(model, "lanes", None)
    return 1 if known is None or math.prod(images.shape[1:]) >= _SPLIT else int(known(images.shape[1:]))


def pulled(logits: Tensor, at: Tensor, slopes: Tensor) -> Tensor:
    """The gradient at `at`, in its shape, of the logits (n, classes) weighted by `slopes` of the same shape.

    `torch.autograd.grad` with the slopes as its third argument gives the same bits, but imports an algebra system at
    its first call, which takes as long as all attacks on a small net.
    """
    with torch.enable_grad():
        weighted = (logits * slopes).sum()
    return torch.autograd.grad(weighted, at)[0]
