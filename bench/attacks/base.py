"""The attacks of AutoAttack, as far as ours are sooner than pyautoattack's at the same verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]  # images (n, c, h, w) to logits (n, classes)

_VALUES = {"cpu": 2**18, "cuda": 2**20}  # a million bytes stay in a processor's cache; a card wants more to do


def at_once(images: Tensor) -> int:
    """How many points of the shape of `images` (n, c, h, w) an attack works on at a time where it may choose."""
    return max(32, _VALUES.get(images.device.type, 2**18) // math.prod(images.shape[1:]) // 32 * 32)


def pulled(logits: Tensor, at: Tensor, slopes: Tensor) -> Tensor:
    """The gradient at `at` of the logits (n, classes), weighted by `slopes` of the same shape; of the shape of `at`.

    `torch.autograd.grad` with the slopes as its third argument is the same to the bit, and imports an algebra system
    when it is first called, which takes as long as all attacks on a small net.
    """
    with torch.enable_grad():
        weighted = (logits * slopes).sum()
    return torch.autograd.grad(weighted, at)[0]
