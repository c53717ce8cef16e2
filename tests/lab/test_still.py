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


def whole(net):
    """The net with weights of -3 to 3: the sums of its products are whole numbers, which float32 holds exactly."""
    chance = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randint(-3, 4, parameter.shape, generator=chance))
    return net.eval()


@pytest.mark.parametrize("channels", [1, 3, 8, 9])
def test_channels_of_zeros_change_neither_logits_nor_the_gradient_of_the_images(channels):
    """Exactly; where there are eight channels or more, nothing is added."""
    net = whole(nn.Sequential(nn.Conv2d(channels, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4)))
    images = torch.randint(0, 4, (3, channels, 6, 6), generator=torch.Generator().manual_seed(1)).float()
    plain, filled = Still(net, torch.float32), Still(net, torch.float32, fill=8)
    with torch.no_grad():
        assert torch.equal(filled(images), plain(images)) and torch.equal(plain(images), net(images))
    found = gradient(filled, images)
    assert found.shape == images.shape and torch.equal(found, gradient(plain, images)) and found.any()
    sizes = [parameter.shape[1] for parameter in filled.parameters() if parameter.dim() == 4]
    assert sizes == [max(8, channels)]
    whole(net)[0].weight.data.neg_()
    filled.refresh()
    with torch.no_grad():
        assert torch.equal(filled(images), net(images)) and not torch.equal(filled(images), plain(images))


def test_a_channel_that_is_not_zero_would_be_seen():
    """The twin: 1 in place of a weight of 0 cannot show where the images have zeros, and does where they have not."""
    still = Still(whole(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())), torch.float32, fill=8)
    (kept,) = [parameter for parameter in still.parameters() if parameter.dim() == 4]
    images = torch.ones(1, 3, 2, 2)
    before = still(images)
    kept[:, 3:] = 1.0
    assert torch.equal(still(images), before)
    kept[:, 2] += 1.0
    assert not torch.equal(still(images), before)


@pytest.mark.parametrize("arch", ["digits-cnn", "resnet18"])
def test_the_stem_alone_is_filled_up(arch):
    shape = ARCHITECTURES[arch].shape
    plain, images = net(arch, shape), torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    filled = Still(plain, torch.float32, fill=8)
    read = [parameter.shape[1] for parameter in filled.parameters() if parameter.dim() == 4]
    own = [parameter.shape[1] for parameter in plain.parameters() if parameter.dim() == 4]
    assert read == [8, *own[1:]]
    expected, found = gradient(plain, images), gradient(filled, images)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


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
