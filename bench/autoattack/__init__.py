"""The attacks of AutoAttack, as far as ours are sooner than pyautoattack's at the same verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

Model = Callable[[Tensor], Tensor]  # images (n, c, h, w) to logits (n, classes)

_VALUES = {"cpu": 2**18, "cuda": 2**20}  # a million bytes stay in a processor's cache; a card wants more to do


def at_once(images: Tensor) -> int:
    """How many points of the shape of `images` (n, c, h, w) an attack works on at a time where it may choose."""
    return max(32, _VALUES.get(images.device.type, 2**18) // math.prod(images.shape[1:]) // 32 * 32)
