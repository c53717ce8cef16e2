"""The net as a training's attack sees it: the net itself in eval mode, with its weights of the last refresh."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunebench.bench.datasets import Info
from prunebench.bench.lab.still import Still
from prunebench.bench.models import ARCHITECTURES, build


def net(arch="digits-cnn", shape=(1, 8, 8)):
    """A net whose batch norms have statistics and weights of their own."""
    made = build(arch, info=Info(10, shape, (0.4,) * shape[0], (0.3,) * shape[0]), seed=3)
    chance = torch.Generator().manual_seed(0)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.uniform_(0.5, 1.5, generator=chance)
    return made.eval()


def gradient(model, images):
    at = images.clone().requires_grad_()
    return torch.autograd.grad(model(at).square().sum(), at)[0]


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_it_is_the_net_in_eval_mode(arch):
    """Folding reorders sums: equal to float32's rounding, as a net with other statistics is not."""
    shape = ARCHITECTURES[arch].shape
    plain, images = net(arch, shape), torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    still = Still(plain, torch.float32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in still.modules())
    expected, found = gradient(plain, images), gradient(still, images)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    plain.train()
    other = gradient(plain, images)
    assert float((other - expected).norm() / expected.norm()) > 1e-2  # the twin


def test_on_paper():
    """A weight of 3, then a norm with mean 1, variance 4, weight 2 and bias 5: x -> (3 x - 1) / 2 * 2 + 5 = 3 x + 4."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
    for tensor, value in ((conv.weight, 3), (norm.running_mean, 1), (norm.running_var, 4), (norm.weight, 2)):
        tensor.data.fill_(value)
    norm.bias.data.fill_(5)
    still = Still(nn.Sequential(conv, norm).eval(), torch.float32)
    assert still(torch.full((1, 1, 1, 1), 7.0)).item() == 25.0
    conv.weight.data.fill_(0)
    assert still(torch.full((1, 1, 1, 1), 7.0)).item() == 25.0  # as last read
    weights = [parameter.data_ptr() for parameter in still.parameters()]
    still.refresh()
    assert still(torch.full((1, 1, 1, 1), 7.0)).item() == 4.0
    assert [parameter.data_ptr() for parameter in still.parameters()] == weights  # where a CUDA graph looks for them


def test_no_gradient_reaches_a_weight_and_pruned_ones_stay_zero():
    plain = net()
    name, weight = next((name, p) for name, p in plain.named_parameters() if p.dim() == 4)
    weight.data[:, :, 0] = 0
    still = Still(plain, torch.bfloat16)
    kept = dict(still.named_parameters())[f"graph.{name}"]
    assert kept.dtype == torch.bfloat16 and not kept[:, :, 0].any() and kept[:, :, 1:].any()
    assert not any(parameter.requires_grad for parameter in still.parameters())


def test_a_norm_without_a_convolution_of_its_own_is_refused():
    for layers in ([nn.BatchNorm2d(1)], [nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1)]):
        with pytest.raises(ValueError, match="follows no convolution of its own"):
            Still(nn.Sequential(*layers).eval(), torch.float32)
