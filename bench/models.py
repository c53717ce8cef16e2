"""The architectures of the benchmark; every net takes pixels in [0, 1] and normalises them itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from prunebench.bench.datasets import Info
from prunebench.bench.errors import PrunebenchError, unknown

# torchvision takes seconds to import, so only the nets built from it import it.


class Normalise(nn.Module):
    """Pixels in [0, 1] to zero mean and unit spread; the constants are buffers, so a saved net carries them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """`images`: (n, c, h, w)."""
        return (images - self.mean) / self.std


def _conv(inputs: int, outputs: int, *, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=padding, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _digits_cnn(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Two convolutions and two linear layers, 38,160 weights on 8x8 digits."""
    channels, height, width = shape
    flat = 32 * ((height + 1) // 2) * ((width + 1) // 2)
    return nn.Sequential(
        *_conv(channels, 16),
        *_conv(16, 32, stride=2),
        nn.Flatten(),
        nn.Linear(flat, 64),
        nn.ReLU(inplace=True),
        nn.Linear(64, classes),
    )


def _mnist_cnn(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The small CNN of TRADES (Zhang et al. 2019, arXiv 1901.08573): 4 convolutions, 3 linear; BN added, no dropout."""
    channels, height, width = shape
    flat = 64 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        *_conv(channels, 32, padding=0),
        *_conv(32, 32, padding=0),
        nn.MaxPool2d(2),
        *_conv(32, 64, padding=0),
        *_conv(64, 64, padding=0),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(flat, 200),
        nn.ReLU(inplace=True),
        nn.Linear(200, 200),
        nn.ReLU(inplace=True),
        nn.Linear(200, classes),
    )


def _resnet18(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """torchvision's ResNet-18 with the stem for small images: one 3x3 convolution of stride 1, no pooling."""
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    net.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def _resnet_small(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A narrow ResNet-10 (He et al. 2016, arXiv 1512.03385): stem of stride 2, 4 blocks of 12 to 96 channels."""
    from torchvision.models.resnet import BasicBlock

    width, layers = 12, _conv(shape[0], 12, stride=2)
    layers.append(BasicBlock(width, width))
    for _ in range(3):
        shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), nn.BatchNorm2d(2 * width))
        layers.append(BasicBlock(width, 2 * width, stride=2, downsample=shortcut))
        width *= 2
    for module in nn.Sequential(*layers).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _vgg16_bn(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """torchvision's VGG-16-BN features and one linear layer."""
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["D"], batch_norm=True)
    if shape[0] != 3:
        features[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


@dataclass(frozen=True)
class Architecture:
    """A net of the benchmark: `net(classes, shape)` makes the part behind the normalisation.

    `shape`: its intended (channels, height, width); `least`: pixels per side below which pooling leaves nothing.
    `batch`: images measured at once per kind of device, where that is not the default. `names`: (pattern, replacement)
    pairs that translate foreign tensor names to prunebench's.
    """

    net: Callable[[int, tuple[int, int, int]], nn.Module]
    shape: tuple[int, int, int] = (3, 32, 32)
    least: int = 1
    batch: Mapping[str, int] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    "digits-cnn": Architecture(_digits_cnn, shape=(1, 8, 8)),
    "mnist-cnn": Architecture(_mnist_cnn, shape=(1, 28, 28), least=16),
    "resnet-small": Architecture(_resnet_small),
    "resnet18": Architecture(
        _resnet18, batch={"cpu": 64}, names=((r"\bshortcut\b", "downsample"), (r"^linear\.", "fc."))
    ),
    "vgg16-bn": Architecture(
        _vgg16_bn,
        least=32,
        batch={"cpu": 64},
        names=((r"^features\.", "0."), (r"^(classifier|linear|fc)\.(0\.)?(?=weight|bias)", "3.")),
    ),
}
LARGEST = 2**26  # parameters; the largest net of the built-in protocols has 15 million


def build(
    arch: str,
    num_classes: int = 10,
    shape: tuple[int, int, int] | None = None,
    *,
    info: Info | None = None,
    seed: int = 0,
) -> nn.Module:
    """A fresh net in float32 whose weights depend on `seed` alone.

    `shape`: (channels, height, width), by default that of the architecture's intended data. `info` gives classes,
    shape and pixel statistics at once. The global random state is unchanged. Raises PrunebenchError for an unknown
    `arch`, for images of an unsupported shape, and for more parameters than LARGEST.
    """
    if arch not in ARCHITECTURES:
        raise unknown("model", arch, ARCHITECTURES)
    known = ARCHITECTURES[arch]
    least = known.least
    if info is None:
        shape = shape or known.shape
        info = Info(num_classes, shape, (0.5,) * shape[0], (0.25,) * shape[0])
    _, height, width = info.shape
    if min(height, width) < least:
        raise PrunebenchError(
            f"Model {arch} needs images of at least {least}x{least} pixels, not {height}x{width}; choose another model "
            "or larger images."
        )
    if (weights := size(arch, info.classes, info.shape)) > LARGEST:
        raise PrunebenchError(
            f"Model {arch} would have {weights} weights on {info.shape} images of {info.classes} classes, more than "
            f"{LARGEST}; choose another model or smaller images."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # only the CPU's; torch.manual_seed would seed every card
        body = known.net(info.classes, info.shape)
    return nn.Sequential(Normalise(info.mean, info.std), body)


@cache
def size(arch: str, classes: int, shape: tuple[int, int, int]) -> int:
    """The number of parameters of a net, counted without allocating them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return sum(parameter.numel() for parameter in ARCHITECTURES[arch].net(classes, shape).parameters())


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Every convolution and linear weight, first and last layer included, by its name in the state dict."""
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
