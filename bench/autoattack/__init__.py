"""The attacks of AutoAttack, as far as ours are sooner than pyautoattack's at the same verdicts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Model = Callable[[Tensor], Tensor]  # images (n, c, h, w) to logits (n, classes)
