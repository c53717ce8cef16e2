"""Every crop is one that is possible, and all of them come."""

from __future__ import annotations

import torch
from torch import nn

from prunebench.bench.lab.augmentation import crop_flip


def test_every_crop_is_one_of_the_162():
    images = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1  # no pixel is the border's black
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    crops = [padded[:, :, top : top + 8, left : left + 8] for top in range(9) for left in range(9)]
    possible = torch.stack([*crops, *(crop.flip(3) for crop in crops)])
    assert len(possible) == 162
    generator, drawn = torch.Generator().manual_seed(0), set()
    for _ in range(400):
        found = (possible == crop_flip(images, generator)).flatten(2).all(2)  # (which crop, image)
        assert found.sum(0).tolist() == [1] * 6
        drawn.update(found.int().argmax(0).tolist())
    assert drawn == set(range(162))  # all of them come
    foreign = crop_flip(images, generator)
    foreign[0, 0, 0, 0] += 0.05  # the twin
    assert not (possible == foreign).flatten(2).all(2)[:, 0].any()
