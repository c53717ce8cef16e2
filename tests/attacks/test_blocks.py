"""Attacks on a card ask for multiples of 32 images, and hear of those alone that they asked for."""

from __future__ import annotations

import pytest
import torch

from prunebench.bench.attacks import blocks
from prunebench.bench.attacks.blocks import in_blocks
from prunebench.bench.score.referee import Referee
from tests.support.nets import TINY, Bright


@pytest.fixture
def sizes():
    """A model of the sum of an image's squares in two classes, and the batch sizes that it saw."""
    seen = []

    def model(images):
        seen.append(len(images))
        squares = images.square().flatten(1).sum(1)
        return torch.stack([squares, -squares], dim=1)

    return model, seen


@pytest.mark.parametrize(("count", "asked"), [(1, 32), (31, 32), (32, 32), (33, 64), (64, 64)])
def test_a_card_is_asked_in_blocks(count, asked, sizes, monkeypatch):
    """The gradient of x * x is 2 x, of the images that were asked for; on the processor every size is welcome."""
    model, seen = sizes
    images = torch.rand(count, 1, 2, 2).requires_grad_()
    plain = in_blocks(model, images)
    monkeypatch.setitem(blocks.BLOCK, "cpu", blocks.BLOCK["cuda"])
    found = in_blocks(model, images)
    assert seen == [count, asked] and torch.equal(found, plain)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), images)
    torch.testing.assert_close(gradient, 2 * images.detach())


def test_the_referee_asks_in_blocks_and_charges_for_images(monkeypatch):
    net, seen = Bright(), []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    referee = Referee(net, TINY, 64, torch.device("cpu"))
    images = torch.rand(5, 1, 8, 8)
    first = referee.attacked(images)
    monkeypatch.setitem(blocks.BLOCK, "cpu", 32)
    second = referee.attacked(images)
    assert 5 in seen and seen[-1] == 32 and torch.equal(first, second) and len(second) == 5
    assert referee.passes == 10
