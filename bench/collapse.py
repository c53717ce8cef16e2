"""Detects nets that ignore their input: an empty layer, no path of kept weights, equal logits for every image."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunebench.bench.checkpoint import Net
from prunebench.bench.errors import some
from prunebench.bench.models import ARCHITECTURES, Normalise
from prunebench.bench.wide import Wide

_SHOWN = 5  # layers in a sentence
_SMALL = 2.0**-20  # a gain of layers at which only the shortest path counts


def collapse(net: Net) -> list[str]:
    """Sentences on what the zero weights alone prove against `net`; none if its logits can depend on its images."""
    empty = [layer.name for layer in net.layers if layer.nonzero == 0]
    if empty and net.id.nonzero == 0:
        return [f"No weight is left: 0 of {net.id.prunable} are kept, and the net cannot see its images."]
    found = []
    if empty:
        found.append(f"No weight is left in {some(empty, _SHOWN)}.")
    if net.header.arch in ARCHITECTURES and not connected(net.module, net.header.shape):
        found.append("No path of kept weights leads from an image to a logit.")
    return found


def warnings(net: Net) -> list[str]:
    """The sentences of `collapse`, plus what synthetic images and the stages of its training show.

    Synthetic images show equal logits, and values of no sensible size.
    """
    found, images = collapse(net), _images(net.header.shape)
    wide = Wide(net.module)
    with torch.no_grad():
        logits = wide.logits(images)
    if not found and torch.equal(logits, logits[:1].expand_as(logits)):
        found.append(f"The net gives the same logits to {len(images)} different images.")
    if (excess := wide.look(images).excess) > 1:
        found.append(f"The net's largest number is {excess:.3g} times the limit that is safe in float32.")
    return found + [of_stage(stage.name, stage.collapsed) for stage in net.header.stages if stage.collapsed is not None]


def of_stage(name: str, clean: float) -> str:
    """A sentence on the stage `name`, which ended near chance with the clean accuracy `clean`, in [0, 1]."""
    return (
        f"Stage {name!r} ended near chance, with {100 * clean:.1f} % of the clean validation images correct; give it "
        "more epochs, with a larger budget or fewer stages, or ask for a lower sparsity."
    )


def connected(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a path of nonzero weights leads from an image of this shape (c, h, w) to a logit.

    `module`: on any device; the path is looked for on the CPU. Biases and statistics are ignored.
    """
    return bool((_flow(module, shape, 1.0) > 0).any())


def shortest_path(module: nn.Module, shape: Sequence[int]) -> int:
    """The fewest weights on a path of nonzero weights from an image of this shape (c, h, w) to a logit.

    With every layer's gain t, a path of d weights adds a multiple of t ** d to a logit, so that halving a small t
    divides the logit by 2 ** d, with d of the shortest path. Raises ValueError without a path, or with more than 50
    weights on it, whose flow float64 cannot hold.
    """
    full, half = (float(_flow(module, shape, gain).max()) for gain in (_SMALL, _SMALL / 2))
    if not half:
        raise ValueError("no path of nonzero weights leads through the net, or the shortest is too long")
    return round(math.log2(full / half))


@torch.no_grad()
def _flow(module: nn.Module, shape: Sequence[int], gain: float) -> Tensor:
    """What reaches the logits from an image of ones if each unit passes on `gain` times the mean over its kept weights.

    Every kept weight is the same positive share, so nothing cancels.
    """
    paths = copy.deepcopy(module).cpu().double().eval()
    for layer in paths.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            kept = (layer.weight != 0).double()
            fan_in = kept.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (kept.dim() - 1))
            layer.weight.copy_(gain * kept / fan_in)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.copy_((layer.weight != 0).double())
            layer.running_mean, layer.running_var = torch.zeros_like(layer.weight), torch.ones_like(layer.weight)
        elif isinstance(layer, Normalise):
            layer.mean, layer.std = torch.zeros_like(layer.mean), torch.ones_like(layer.std)
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and layer.bias is not None:
            layer.bias.zero_()
    flow: Tensor = paths(torch.ones(1, *shape, dtype=torch.float64))
    return flow


def _images(shape: Sequence[int]) -> Tensor:
    """Black, grey, white, and noise: float32 (8, c, h, w)."""
    flat = torch.tensor([0.0, 0.5, 1.0]).view(-1, 1, 1, 1).expand(-1, *shape)
    return torch.cat([flat, torch.rand((5, *shape), generator=torch.Generator().manual_seed(0))])
