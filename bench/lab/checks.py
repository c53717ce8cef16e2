"""What stops a stage of a pruner before or after its training, and what is only said about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.bench.collapse import connected
from prunebench.bench.errors import PrunebenchError, some
from prunebench.bench.mask import Masks, keep_count

_SHOWN = 5  # layers in a sentence


def refuse_short(stages: Mapping[str, int], *, budget: int, steps: int, way_out: str) -> None:
    """Raise PrunebenchError for the first of `stages` (name -> epochs) that has no epoch; call it before any training.

    `budget`: epochs in all (`lab.epochs`). `steps`: optimiser steps per epoch (`lab.steps`). `way_out`: which of the
    pruner's options to change, as the end of a sentence.
    """
    for name, epochs in stages.items():
        if epochs < 1:
            raise PrunebenchError(
                f"Stage {name!r} would have {max(0, epochs)} of the {budget} epochs in the budget (of {steps} "
                f"step{'s' * (steps > 1)} each), but a stage needs at least one: raise the budget, or {way_out}."
            )


def refuse_hopeless(sparsity: float, weights: int, path: int) -> None:
    """Raise PrunebenchError if `sparsity` keeps fewer of a net's `weights` than its shortest `path` has.

    Whatever the mask is, such a net cannot see its images.
    """
    if (keep := keep_count(weights, sparsity)) < path:
        most = math.floor(1e6 * (1 - path / weights)) / 1e6
        raise PrunebenchError(
            f"Sparsity {sparsity} keeps {keep} of {weights:,} weights, but the shortest path from an image to a logit "
            f"has {path}, so no net this sparse can see its images; ask for a sparsity of at most {most}."
        )


def refuse_blind(stage: str, net: nn.Module, masks: Masks, shape: Sequence[int]) -> None:
    """Raise PrunebenchError if under `masks` no logit of `net` can depend on an image of `shape` (c, h, w).

    That is so where a layer that every path crosses keeps no weight, or where the kept weights do not meet. `net` is
    changed.
    """
    weights = dict(net.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].copy_(mask)
    if connected(net, shape):
        return
    empty = [name for name, mask in masks.items() if not mask.any()]
    kept, size = (sum(count(mask) for mask in masks.values()) for count in (_kept, Tensor.numel))
    what = f"no weight in {some(empty, _SHOWN)}" if empty else "no path of kept weights from an image to a logit"
    raise PrunebenchError(
        f"Stage {stage!r} would train a net that cannot see its images: at sparsity {1 - kept / max(1, size):.6g}, its "
        f"mask leaves {what}; ask for a lower sparsity, or choose layer counts that keep some weights in every layer."
    )


def _kept(mask: Tensor) -> int:
    return int(mask.sum())


def refuse_infinite(stage: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise PrunebenchError if the result of `stage` holds NaN or infinity."""
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise PrunebenchError(
            f"Stage {stage!r} ended with NaN or infinite values in {some(broken, _SHOWN)}; lower the "
            "learning rate, of this stage or of the stage before it."
        )


def near_chance(labels: Tensor) -> float:
    """The clean accuracy, in [0, 1], at or below which a net counts as collapsed, on images with these labels.

    With s the share of the largest class, which is the most that a net of one answer gets right, it is s + s (1 - s)
    / 2: 14.5 % for ten equal classes, 62.5 % for two.
    """
    share = float(labels.bincount().max()) / len(labels)
    return share + share * (1 - share) / 2


def collapsed(curve: Sequence[Mapping[str, Any]], labels: Tensor) -> float | None:
    """The clean accuracy with which the training of this `curve` ended, if that is near chance; otherwise None."""
    clean = curve[-1].get("clean") if curve else None
    return clean if clean is not None and clean <= near_chance(labels) else None
