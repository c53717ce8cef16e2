"""Detects nets that ignore their input: an empty layer, no path of kept weights, equal logits for every image."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunebench.bench.checkpoint import Net
from prunebench.bench.errors import some
from prunebench.bench.models import ARCHITECTURES, Normalise
from prunebench.bench.wide import Wide

_SHOWN = 5  # layers in a sentence


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


@torch.no_grad()
def connected(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a path of nonzero weights leads from an image of this shape (c, h, w) to a logit.

    `module`: on any device; the path is looked for on the CPU. Every kept weight becomes the same positive share, so
    nothing cancels. Biases and statistics are ignored.
    """
    paths = copy.deepcopy(module).cpu().double().eval()
    for layer in paths.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            kept = (layer.weight != 0).double()
            layer.weight.copy_(kept / kept.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (kept.dim() - 1)))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.copy_((layer.weight != 0).double())
            layer.running_mean, layer.running_var = torch.zeros_like(layer.weight), torch.ones_like(layer.weight)
        elif isinstance(layer, Normalise):
            layer.mean, layer.std = torch.zeros_like(layer.mean), torch.ones_like(layer.std)
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and layer.bias is not None:
            layer.bias.zero_()
    return bool((paths(torch.ones(1, *shape, dtype=torch.float64)) > 0).any())


def _images(shape: Sequence[int]) -> Tensor:
    """Black, grey, white, and noise: float32 (8, c, h, w)."""
    flat = torch.tensor([0.0, 0.5, 1.0]).view(-1, 1, 1, 1).expand(-1, *shape)
    return torch.cat([flat, torch.rand((5, *shape), generator=torch.Generator().manual_seed(0))])
