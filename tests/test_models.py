"""The nets have the weights that can be counted on paper, normalise inside, and are a function of their seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from prunebench.bench.datasets import Info
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.models import ARCHITECTURES, Normalise, build, prunable

VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def conv(inputs, outputs, side=3):
    return inputs * outputs * side * side


def resnet18_weights(classes, channels=3):
    """Stem, then four stages of two blocks of two 3x3 convolutions; the last three have a 1x1 shortcut."""
    total = conv(channels, 64) + 4 * conv(64, 64) + 512 * classes
    for width in (128, 256, 512):
        total += conv(width // 2, width) + 3 * conv(width, width) + conv(width // 2, width, side=1)
    return total


def resnet_small_weights(classes, channels=3):
    """Stem of 12 channels, then four blocks of two 3x3 convolutions; the last three have a 1x1 shortcut."""
    total = conv(channels, 12) + 2 * conv(12, 12) + 96 * classes
    for width in (24, 48, 96):
        total += conv(width // 2, width) + conv(width, width) + conv(width // 2, width, side=1)
    return total


WEIGHTS = {
    # 8x8 pixels, halved once: 4 * 4 * 32 = 512 inputs to the first linear layer
    "digits-cnn": lambda classes: conv(1, 16) + conv(16, 32) + 512 * 64 + 64 * classes,
    # 28 -> 26 -> 24 -> 12 -> 10 -> 8 -> 4: 4 * 4 * 64 = 1024 inputs
    "mnist-cnn": lambda classes: (
        conv(1, 32) + conv(32, 32) + conv(32, 64) + conv(64, 64) + 1024 * 200 + 200 * 200 + 200 * classes
    ),
    "resnet-small": resnet_small_weights,
    "resnet18": resnet18_weights,
    "vgg16-bn": lambda classes: sum(map(conv, (3, *VGG16), VGG16)) + 512 * classes,
}


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prunable_weights_on_paper(arch, classes):
    with torch.device("meta"):
        weights = prunable(build(arch, classes))
    assert sum(weight.numel() for weight in weights.values()) == WEIGHTS[arch](classes)


def test_the_paper_agrees_with_the_published_numbers():
    assert WEIGHTS["digits-cnn"](10) == 38_160
    assert WEIGHTS["resnet18"](10) == 11_164_352
    assert WEIGHTS["resnet-small"](10) == 173_220
    assert WEIGHTS["vgg16-bn"](10) - 512 * 10 == 14_710_464  # the convolutions of VGG-16


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prunable_is_every_conv_and_linear_weight_first_and_last_included_and_nothing_else(arch):
    with torch.device("meta"):
        net = build(arch)
    names = list(prunable(net))
    modules = dict(net.named_modules())
    kinds = {name: type(modules[name.removesuffix(".weight")]) for name in names}
    assert set(kinds.values()) == {nn.Conv2d, nn.Linear}
    assert kinds[names[0]] is nn.Conv2d and kinds[names[-1]] is nn.Linear
    assert prunable(net)[names[0]].shape[1] == (1 if arch in ("digits-cnn", "mnist-cnn") else 3)
    assert prunable(net)[names[-1]].shape[0] == 10
    rest = [name for name, tensor in net.state_dict().items() if name not in names and tensor.ndim > 1]
    assert rest == ["0.mean", "0.std"]  # no matrix is left out
    assert all(net.state_dict()[name].shape == weight.shape for name, weight in prunable(net).items())


def test_prunable_of_a_bare_layer():
    assert list(prunable(nn.Linear(2, 3))) == ["weight"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("classes", [2, 3])
def test_logits(arch, classes):
    net = build(arch, classes).eval()
    shape = {"digits-cnn": (1, 8, 8), "mnist-cnn": (1, 28, 28)}.get(arch, (3, 32, 32))
    with torch.no_grad():
        logits = net(torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)))
    assert (logits.shape, logits.dtype) == ((3, classes), torch.float32)
    assert torch.isfinite(logits).all()
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # the image matters


@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        ("vgg16-bn", (1, 32, 32)),
        ("resnet18", (1, 9, 7)),
        ("resnet18", (3, 1, 1)),
        ("resnet-small", (1, 9, 7)),
        ("resnet-small", (3, 1, 1)),
        ("digits-cnn", (3, 7, 9)),
        ("mnist-cnn", (3, 16, 17)),
    ],
)
def test_other_images(arch, shape):
    net = build(arch, 4, shape).eval()
    assert net(torch.zeros(2, *shape)).shape == (2, 4)


def test_resnet18_halves_small_images_three_times_only():
    net, sizes = build("resnet18").eval(), []
    for stage in (net[1].layer1, net[1].layer2, net[1].layer3, net[1].layer4):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [32, 16, 8, 4]


def test_resnet_small_halves_images_at_its_stem_and_three_times_after_it():
    net, sizes = build("resnet-small").eval(), []
    for block in (module for module in net.modules() if isinstance(module, BasicBlock)):
        block.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [(12, 16, 16), (24, 8, 8), (48, 4, 4), (96, 2, 2)]


def test_resnet_small_has_no_bias_outside_its_norms_and_its_last_layer():
    with torch.device("meta"):
        net = build("resnet-small")
    biased = [module for module in net.modules() if getattr(module, "bias", None) is not None]
    assert {type(module) for module in biased} == {nn.BatchNorm2d, nn.Linear}


@pytest.mark.parametrize(("arch", "least"), [("mnist-cnn", 16), ("vgg16-bn", 32)])
def test_images_that_pooling_would_leave_nothing_of(arch, least):
    assert build(arch, 2, (1, least, least)).eval()(torch.zeros(1, 1, least, least)).shape == (1, 2)
    for shape in ((1, least - 1, least), (1, least, least - 1), (1, 8, 8)):
        with pytest.raises(PrunebenchError, match=rf"{arch} needs images of at least {least}x{least} pixels, not "):
            build(arch, 2, shape)


def test_normalisation_is_inside_and_saved_with_the_net():
    info = Info(10, (3, 8, 8), (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))
    net = build("digits-cnn", info=info).eval()
    assert net.state_dict()["0.mean"].flatten().tolist() == pytest.approx(info.mean)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([(images[:, c] - info.mean[c]) / info.std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(net[0](images), by_hand)
    assert torch.equal(net(images), net[1](net[0](images)))
    other = build("digits-cnn", info=Info(10, (3, 8, 8), (0.0,) * 3, (1.0,) * 3)).eval()
    assert not torch.allclose(net(images), other(images))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(images), other(images))


def test_normalise_on_paper():
    pixels = torch.tensor([[[[0.0]], [[1.0]]]])
    assert Normalise((0.5, 0.5), (0.25, 0.5))(pixels).flatten().tolist() == [-2.0, 1.0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_net_is_a_function_of_its_seed(arch):
    net, same, other = (build(arch, 2, seed=seed).state_dict() for seed in (1, 1, 2))
    torch.manual_seed(5)
    moved = build(arch, 2, seed=1).state_dict()
    assert net.keys() == other.keys()
    assert all(torch.equal(net[name], same[name]) and torch.equal(net[name], moved[name]) for name in net)
    for name in prunable(build(arch, 2)):
        assert not torch.equal(net[name], other[name])
        assert int((net[name] == 0).sum()) <= 1e-5 * net[name].numel()  # nothing starts pruned, chance zeros aside


def test_build_leaves_the_global_random_state_as_it_was():
    before = torch.get_rng_state()
    build("digits-cnn", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)  # this is what a draw from it would show


def test_every_net_is_trainable_and_float32():
    net = build("digits-cnn")
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in net.parameters())


def test_an_unknown_model_lists_the_choices_and_the_nearest():
    with pytest.raises(PrunebenchError) as error:
        build("resnet-18")
    assert "Unknown model 'resnet-18'; did you mean 'resnet18'?" in str(error.value)
    assert all(arch in str(error.value) for arch in ARCHITECTURES)
