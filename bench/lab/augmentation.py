"""Random changes to training images that preserve their labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Each image padded by `pad` black pixels, randomly cropped to its old size, and mirrored half the time."""
    n, _, height, width = images.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator, device=images.device)

    top, left, flip = draw(2 * pad + 1), draw(2 * pad + 1), draw(2).bool()
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(0), columns)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    pick = torch.arange(n, device=images.device)[:, None, None]
    return padded[pick, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
