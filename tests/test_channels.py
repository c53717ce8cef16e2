"""Channels that belong together, by hand, and the smaller net that has the same function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunebench.bench import channels
from prunebench.bench.channels import hidden_groups, shrunk
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.models import build, prunable
from prunebench.bench.pattern import Chooser

SHAPES = {"digits-cnn": (1, 8, 8), "mnist-cnn": (1, 16, 16), "resnet18": (3, 8, 8), "vgg16-bn": (3, 32, 32)}


def trained_looking(arch):
    """A net in eval mode whose batch norms and biases are all different."""
    net, noise = build(arch, shape=SHAPES[arch]).eval(), torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=noise))
        elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            module.bias.data.uniform_(-1, 1, generator=noise)
    return net.requires_grad_(False)


def channel_pruned(arch, keep=0.1):
    """Such a net with whole channels at zero, and the masks."""
    net = trained_looking(arch)
    weights = {name: weight.detach() for name, weight in prunable(net).items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    size = sum(weight.numel() for weight in weights.values())
    masks = Chooser("channel", shapes, round(keep * size), lambda: net)({n: w.abs() for n, w in weights.items()})
    for name, weight in weights.items():
        weight.mul_(masks[name])
    return net, masks


def pictures(arch, images=16):
    return torch.rand(images, *SHAPES[arch], generator=torch.Generator().manual_seed(1))


def test_a_chain_has_a_group_a_hidden_layer():
    groups = hidden_groups(build("digits-cnn"))
    assert [(g.size, g.makers, g.norms, g.readers) for g in groups] == [
        (16, ["1.0"], ["1.1"], ["1.3"]),
        (32, ["1.3"], ["1.4"], ["1.7"]),
        (64, ["1.7"], [], ["1.9"]),
    ]


def test_what_a_residual_net_adds_up_is_one_group():
    groups = hidden_groups(build("resnet18"))
    assert sorted(group.size for group in groups) == sorted([64, 128, 256, 512] * 3)  # 2 inside, 1 along each stage
    by_maker = {name: group for group in groups for name in group.makers}
    first = by_maker["1.conv1"]
    assert sorted(first.makers) == ["1.conv1", "1.layer1.0.conv2", "1.layer1.1.conv2"]
    assert sorted(first.norms) == ["1.bn1", "1.layer1.0.bn2", "1.layer1.1.bn2"]
    assert sorted(first.readers) == [
        *("1.layer1.0.conv1", "1.layer1.1.conv1"),
        *("1.layer2.0.conv1", "1.layer2.0.downsample.0"),
    ]
    second = by_maker["1.layer2.0.downsample.0"]
    assert sorted(second.makers) == ["1.layer2.0.conv2", "1.layer2.0.downsample.0", "1.layer2.1.conv2"]
    assert by_maker["1.layer4.1.conv2"].readers == ["1.layer4.1.conv1", "1.fc"]
    assert by_maker["1.layer3.1.conv1"].makers == ["1.layer3.1.conv1"]
    assert "1.fc" not in by_maker


class Odd(nn.Module):
    """A convolution whose channels are turned around before the next."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.two(self.one(images).flip(1)).flatten(1)


class Deciding(nn.Module):
    """A forward pass that depends on its images and cannot be traced."""

    def forward(self, images):
        return images if images.sum() > 0 else -images


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Odd(), "the operation flip"),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2)), "the grouped convolution 1"),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.PixelShuffle(2)), r"the layer 1 \(PixelShuffle\)"),
        (Deciding(), "its forward pass"),
    ],
)
def test_channels_that_cannot_be_followed_are_refused(net, said):
    with pytest.raises(PrunebenchError, match=f"cannot be followed through {said}"):
        hidden_groups(net)


def check_shrunk(arch):
    net, masks = channel_pruned(arch)
    small, images = shrunk(net), pictures(arch)
    weights = prunable(small)
    assert all(weight.all() for weight in weights.values())
    assert {name: weight.numel() for name, weight in weights.items()} == {n: int(m.sum()) for n, m in masks.items()}
    large, little = net(images), small(images)
    assert torch.equal(large.argmax(1), little.argmax(1))
    torch.testing.assert_close(little, large, rtol=1e-5, atol=1e-5 * float(large.abs().max()))
    torch.testing.assert_close(small.double()(images.double()), net.double()(images.double()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("arch", SHAPES)
def test_the_smaller_net_has_the_same_logits(arch):
    check_shrunk(arch)


@pytest.mark.parametrize("twin", ["bias", "blocks"])
def test_shrunk_twin(twin, monkeypatch):
    """Entries of biases in the wrong order, and columns of a flattened channel that are spread instead of a block."""
    if twin == "bias":
        cut = channels._cut
        monkeypatch.setattr(
            channels,
            "_cut",
            lambda module, names, kept: cut(module, names[:1], kept) or _flipped(cut, module, names[1:], kept),
        )
    else:
        monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda self, times: self.repeat(times))
    with pytest.raises(AssertionError):
        check_shrunk("digits-cnn")


def _flipped(cut, module, names, kept):
    for name in names:
        if getattr(module, name) is not None:
            getattr(module, name).data = getattr(module, name).data.flip(0)
    cut(module, names, kept)


def test_a_dense_net_stays_as_it_is_and_the_given_net_is_not_changed():
    dense = trained_looking("digits-cnn")
    assert all(torch.equal(a, b) for a, b in zip(shrunk(dense).parameters(), dense.parameters(), strict=True))
    net, _ = channel_pruned("digits-cnn")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    shrunk(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_what_nobody_reads_goes_with_everything_that_only_it_read():
    """Of 2 -> 3 -> 2 -> 1, the last layer reads neuron 0 of two, and that reads 0 and 2 of three."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    net[2].weight.data = torch.tensor([[1.0, 0.0, 2.0], [0.0, 5.0, 0.0]])
    net[4].weight.data = torch.tensor([[1.0, 0.0]])
    small, images = shrunk(net), torch.rand(8, 2)
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(2, 2), (1, 2), (1, 1)]
    assert (small[0].out_features, small[2].in_features, small[2].out_features) == (2, 2, 1)
    torch.testing.assert_close(small(images), net(images))


def test_a_net_that_reads_nothing_keeps_a_channel():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    net[2].weight.data.zero_()
    assert tuple(shrunk(net)[2].weight.shape) == (1, 1)
