"""Sparse nets on a card: the answers of float64, the same bits every time, and the kernels that `fast` chose."""

from __future__ import annotations

import pytest
import torch

from prunebench.bench.executor import card, fast
from tests.executor.test_executor import SHAPES, apart, generator, sparse_net

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def answers(net, images):
    """Logits and the input gradient of their weighted sum."""
    images = images.clone().requires_grad_()
    logits = net(images)
    weights = torch.linspace(-1, 1, logits.shape[1], device=images.device, dtype=images.dtype)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), images)
    return logits.detach(), gradient


@pytest.mark.parametrize(
    ("arch", "density", "images"),
    [
        ("digits-cnn", 0.1, 17),
        ("mnist-cnn", 0.05, 300),
        ("resnet-small", 0.1, 256),
        ("resnet18", 0.1, 65),
        ("resnet18", 0.01, 256),
        ("vgg16-bn", 0.05, 33),
    ],
)
def test_a_card_gives_the_same(arch, density, images):
    net = sparse_net(arch, density).cuda()
    batch = torch.rand(images, *SHAPES[arch], generator=generator()).cuda()
    quick = fast(net, always=True)
    ours = answers(quick, batch)
    assert quick.said == [] and quick.bits(SHAPES[arch]) == card.identity()
    for first, second in zip(ours, answers(quick, batch), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(quick(batch[:9]), ours[0][:9])  # another batch, other buffers
    exact = answers(net.double(), batch.double())
    assert apart(ours[0], exact[0]) < 1e-5
    worst = (ours[1] - exact[1]).abs().flatten(1).amax(1) / exact[1].abs().max()
    assert (worst < 1e-5).sum() >= 0.97 * images  # a ReLU may hang on the last bit
