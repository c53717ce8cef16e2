"""torchattacks in an environment of its own, on a linear model whose worst case is known in closed form."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn


def test_its_copy_of_robustbench_is_the_only_one():
    """The fault that keeps the two extras apart: the wheel brings `robustbench` without owning the name."""
    with pytest.raises(PackageNotFoundError):
        version("robustbench")
    carried = next(file for file in files("torchattacks") if file.as_posix() == "robustbench/__init__.py")
    assert Path(find_spec("robustbench").origin).samefile(carried.locate())


def test_pgd_reaches_the_corner_of_the_ball():
    """On logits (0, <w, x>) the worst image in the ball is x +- eps sign(w), clipped to [0, 1]."""
    import torchattacks

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 4, 4, generator=generator)
    weight = torch.randn(16, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    eps = 0.125
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(16), weight]))
    away = torch.where(labels == 0, 1.0, -1.0).reshape(-1, 1, 1, 1)
    corner = (images + eps * away * weight.sign().reshape(1, 1, 4, 4)).clamp(0, 1)
    assert weight.abs().min() > 0, "premise: every pixel matters"
    assert (corner != images + eps * away * weight.sign().reshape(1, 1, 4, 4)).any(), "premise: the box cuts somewhere"

    found = torchattacks.PGD(model, eps=eps, alpha=eps / 2, steps=10, random_start=True)(images, labels)

    torch.testing.assert_close(found, corner, rtol=0, atol=1e-6)


def test_one_step_too_few_does_not():
    """The twin: from a corner's other side, steps that sum to less than the way cannot reach it."""
    import torchattacks

    images = torch.full((1, 1, 2, 2), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
    found = torchattacks.PGD(model, eps=0.2, alpha=0.05, steps=3, random_start=False)(images, torch.tensor([0]))
    torch.testing.assert_close(found, images + 0.15)
