"""Batches of few different sizes, for devices that plan anew for each size."""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench.bench.attacks.base import Model

BLOCK = {"cuda": 32}  # images, by device; cuDNN chooses its engines anew for every batch size


def in_blocks(model: Model, images: Tensor) -> Tensor:
    """`model(images)`, asked with black images behind them, on a card, up to a multiple of the block.

    The images of an attack fall away one by one, so their numbers hardly ever repeat. `images`: (n, c, h, w).
    """
    missing = -len(images) % BLOCK.get(images.device.type, 1)
    if not missing:
        return model(images)
    return model(torch.cat([images, images.new_zeros(missing, *images.shape[1:])]))[: len(images)]
