"""Masks: which weights are kept, with exact counts, resolved ties and shuffled positions.

A mask is a bool tensor of a weight's shape, True where the weight is kept; masks are keyed by the weight's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunebench.bench.errors import NoRanking, PrunebenchError, some, unknown
from prunebench.bench.protocol import as_sparsity

State = dict[str, Tensor]  # a state dict: every tensor of a net by its name
Masks = dict[str, Tensor]


def keep_count(prunable: int, sparsity: Decimal | float) -> int:
    """How many of `prunable` weights may be kept: prunable - ceil(sparsity * prunable), in exact decimals."""
    return prunable - math.ceil(as_sparsity(sparsity) * prunable)


def keep_largest(scores: Mapping[str, Tensor], keep: int, among: Masks | None = None) -> Masks:
    """The masks of the `keep` largest scores over all tensors together.

    Keeps exactly `keep`: among equal scores, the first ones. `among`: masks to choose within, so that the result is
    nested in them. Raises NoRanking for NaN scores, and ValueError if there are fewer than `keep` weights to choose
    from.
    """
    refuse_nan(scores)
    flat = torch.cat([score.detach().reshape(-1) for score in scores.values()])
    ranked = flat.argsort(descending=True, stable=True)
    if among is not None:
        ranked = ranked[torch.cat([among[name].reshape(-1) for name in scores])[ranked]]
    if not 0 <= keep <= len(ranked):
        raise ValueError(f"cannot keep {keep} of {len(ranked)} weights")
    kept = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    kept[ranked[:keep]] = True
    pieces = kept.split([score.numel() for score in scores.values()])
    return {name: piece.view(score.shape) for (name, score), piece in zip(scores.items(), pieces, strict=True)}


def keep_largest_by_layer(scores: Mapping[str, Tensor], keeps: Mapping[str, int], among: Masks | None = None) -> Masks:
    """The masks of the `keeps[name]` largest scores in each tensor; exact, with ties resolved as in `keep_largest`."""
    return {name: keep_largest({name: score}, keeps[name], among)[name] for name, score in scores.items()}


def two_of_four(scores: Mapping[str, Tensor]) -> Masks:
    """The masks of the two largest scores of every four consecutive inputs, for each output and kernel pixel.

    Tensors of shape (outputs, inputs, ...). The last group of a tensor whose inputs are no multiple of 4 is shorter and
    keeps two as well, as if zeros filled it. Among equal scores, the first ones. Raises NoRanking for NaN scores.
    """
    found = {}
    refuse_nan(scores)
    for name, score in scores.items():
        rows = score.detach().movedim(1, -1)
        groups = F.pad(rows, (0, -rows.shape[-1] % 4), value=-math.inf).unflatten(-1, (-1, 4))
        ranks = groups.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        kept = (ranks < 2).flatten(-2)[..., : rows.shape[-1]]
        found[name] = kept.movedim(-1, 1).contiguous()
    return found


def apportion(keep: int, sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """`keep` divided among layers in proportion to `shares`, none above its size, with an exact total.

    Layers that would overflow are filled and the rest is divided again. Units left by rounding go to the largest
    remainders (Hare's method).
    """
    counts, free = [0] * len(sizes), list(range(len(sizes)))
    left = keep
    while free:
        weight = math.fsum(shares[i] for i in free)
        wanted = {i: left * shares[i] / weight if weight else left / len(free) for i in free}
        full = [i for i in free if wanted[i] >= sizes[i]]
        if not full:
            for i in free:
                counts[i] = math.floor(wanted[i])
            spare = left - sum(counts[i] for i in free)
            for i in sorted(free, key=lambda i: (math.floor(wanted[i]) - wanted[i], i))[:spare]:
                counts[i] += 1
            return counts
        for i in full:
            counts[i] = sizes[i]
            left -= sizes[i]
            free.remove(i)
    return counts


def erk(shapes: Mapping[str, Sequence[int]], keep: int) -> dict[str, int]:
    """How many weights each layer keeps under Erdos-Renyi-Kernel densities, `keep` in all.

    A layer's density is proportional to (sum of its dimensions) / (product of its dimensions): Evci et al. 2020,
    arXiv 1911.11134, section 3; capped at 1.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    counts = apportion(keep, sizes, [float(sum(shape)) for shape in shapes.values()])
    return dict(zip(shapes, counts, strict=True))


def draw(shapes: Mapping[str, Sequence[int]], keeps: Mapping[str, int], generator: torch.Generator) -> Masks:
    """Masks with `keeps[name]` weights at random places in each layer."""
    return keep_largest_by_layer(
        {name: torch.rand(*shape, generator=generator) for name, shape in shapes.items()}, keeps
    )


def refuse_empty(keeps: Mapping[str, int]) -> None:
    """Raise PrunebenchError if a layer keeps no weight: in a chain of layers, nothing would pass through it."""
    if empty := [name for name, keep in keeps.items() if keep == 0]:
        raise PrunebenchError(
            f"No weights would be left in {some(empty)}, and what enters a layer must be able to leave it; lower the "
            "sparsity, or divide the weights among the layers in another way."
        )


def refuse_empty_layers(kind: str, shapes: Mapping[str, Sequence[int]], keep: int) -> None:
    """Raise PrunebenchError if `layer_counts` would leave a layer empty, as far as shapes alone can tell.

    With `kind` "global" they cannot: its counts follow trained weights.
    """
    if kind != "global":
        weights = {name: torch.empty(*shape, device="meta") for name, shape in shapes.items()}
        refuse_empty(layer_counts(kind, weights, keep))


def refuse_nan(scores: Mapping[str, Tensor]) -> None:
    """Raise NoRanking for scores that are NaN."""
    if wrong := [name or "a layer" for name, score in scores.items() if score.isnan().any()]:
        raise NoRanking(f"Scores of {some(wrong, 5)} are NaN, so the largest are not defined; lower the learning rate.")


def shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """The same number of kept weights per layer, at random places: a control that isolates layer densities."""
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    return draw(shapes, {name: int(mask.sum()) for name, mask in masks.items()}, generator)


def masked(state: State, masks: Masks) -> State:
    """`state` with exact zeros where the masks are False; the other tensors are the same objects."""
    return state | {name: torch.where(mask, state[name], 0.0) for name, mask in masks.items()}


def rescaled(state: State, masks: Masks, *, outputs: bool = False) -> State:
    """`state` masked, each layer's weights divided by the square root of its density.

    A mask drawn at initialisation cuts the variance of a layer's output by the density; this restores it. An empty
    layer stays empty. `outputs`: whole outputs are pruned, so that the density is that of the other outputs.
    """
    counted = {name: mask[mask.flatten(1).any(1)] if outputs and mask.any() else mask for name, mask in masks.items()}
    scales = {name: max(float(mask.float().mean()), 1 / mask.numel()) ** -0.5 for name, mask in counted.items()}
    return masked(state, masks) | {
        name: torch.where(mask, state[name] * scales[name], 0.0) for name, mask in masks.items()
    }


def nonzero(state: State, names: Sequence[str]) -> Masks:
    """The current masks of `state`: True where a weight is not zero."""
    return {name: state[name] != 0 for name in names}


def distribution(weights: Iterable[Tensor]) -> dict[str, float]:
    """How a net's weights are distributed: the share of |w| below 0.001 and 0.01, and Hoyer's sparsity of all weights.

    Hoyer 2004, JMLR 5, p. 1460: (sqrt(n) - L1 / L2) / (sqrt(n) - 1), 0 for equal weights and 1 for a single one. Zeros
    count as weights. Six decimals.
    """
    flat = torch.cat([weight.detach().reshape(-1).double().abs() for weight in weights])
    root, length = math.sqrt(flat.numel()), float(flat.norm())
    hoyer = (root - float(flat.sum()) / length) / (root - 1) if length else 1.0
    below = {f"below {limit:g}": float((flat < limit).double().mean()) for limit in (0.001, 0.01)}
    return {name: round(value, 6) for name, value in ({"hoyer": hoyer} | below).items()}


@torch.no_grad()
def enforce(model: nn.Module, masks: Masks) -> None:
    """Set the pruned weights of `model` to zero in place."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].mul_(mask)


class _TopK(torch.autograd.Function):
    """The mask of the `keep` largest |scores|, as floats; its gradient passes straight through to the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: int) -> Tensor:
        ctx.save_for_backward(scores)
        return keep_largest({"": scores.abs()}, keep)[""].to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return gradients[0] * scores.sign(), None


class _TopKByFour(_TopK):
    """As `_TopK`, of the |scores| that `two_of_four` allows."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: int) -> Tensor:
        ctx.save_for_backward(scores)
        sizes = {"": scores.abs()}
        return keep_largest(sizes, keep, two_of_four(sizes))[""].to(scores.dtype)


def straight_through(weight: Tensor, scores: Tensor, keep: int, *, by_four: bool = False) -> Tensor:
    """`weight` times the mask of its `keep` largest |scores|; with `by_four`, of those that `two_of_four` allows.

    The gradient of the scores is (dL/dW_eff * W) * sign(s), also for pruned entries: Ramanujan et al. 2020 (arXiv
    1911.13299), as used in HYDRA (arXiv 2002.10509).
    """
    masked_weight: Tensor = weight * (_TopKByFour if by_four else _TopK).apply(scores, keep)
    return masked_weight


class _Scored(nn.Module):
    """A parametrisation: the weight under the mask of its largest scores."""

    def __init__(self, scores: Tensor, keep: int, by_four: bool) -> None:
        super().__init__()
        self.scores, self.keep, self.by_four = nn.Parameter(scores.clone()), keep, by_four

    def forward(self, weight: Tensor) -> Tensor:
        """`weight`: same shape as the scores. Raises PrunebenchError when the scores have become NaN."""
        refuse_nan({"a mask in training": self.scores})
        return straight_through(weight, self.scores, self.keep, by_four=self.by_four)


_SCORES = ".parametrizations.weight.0.scores"
_WEIGHT = ".parametrizations.weight.original"


def attach_scores(model: nn.Module, scores: Masks, keeps: Mapping[str, int], *, by_four: bool = False) -> None:
    """Make `model` use its weights under the masks of the largest scores, and train only the scores.

    `by_four`: of the largest among those that `two_of_four` allows.
    """
    model.requires_grad_(False)
    for name, score in scores.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        parametrize.register_parametrization(module, "weight", _Scored(score, keeps[name], by_four))


def split_scores(state: State) -> tuple[State, State]:
    """The scores, keyed by their weights' names, and the plain state dict of a net with scores attached."""
    scores = {name.replace(_SCORES, ".weight"): tensor for name, tensor in state.items() if name.endswith(_SCORES)}
    plain = {name.replace(_WEIGHT, ".weight"): tensor for name, tensor in state.items() if not name.endswith(_SCORES)}
    return scores, plain


def scaled_scores(weights: State) -> State:
    """Scores that rank a layer's weights by magnitude: sqrt(6 / fan_in) * W / max|W| (HYDRA, arXiv 2002.10509)."""
    return {
        name: math.sqrt(6 / weight[0].numel()) * weight / weight.abs().max().clamp_min(1e-12)
        for name, weight in weights.items()
    }


def uniform(shapes: Mapping[str, Sequence[int]], keep: int) -> dict[str, int]:
    """How many weights each layer keeps at one common density, `keep` in all."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    return dict(zip(shapes, apportion(keep, sizes, [float(size) for size in sizes]), strict=True))


LAYERS = ("uniform", "erk", "global")  # the ways to divide the kept weights among the layers


def layer_counts(kind: str, weights: Mapping[str, Tensor], keep: int) -> dict[str, int]:
    """How many of `keep` weights each layer keeps; `weights`: the prunable tensors, any shapes.

    `kind`: "uniform" (one density for all), "erk" (see `erk`), or "global": as many as the layer has among the `keep`
    largest |weights| of all layers together, which may leave a layer empty. Raises PrunebenchError for another kind,
    and ValueError for NaN weights and a `keep` outside 0 to the number of weights.
    """
    if kind not in LAYERS:
        raise unknown("way to divide weights among layers", kind, LAYERS)
    whole = sum(weight.numel() for weight in weights.values())
    if not 0 <= keep <= whole:
        raise ValueError(f"cannot keep {keep} of {whole} weights")
    if kind == "global":
        masks = keep_largest({name: weight.abs() for name, weight in weights.items()}, keep)
        return {name: int(mask.sum()) for name, mask in masks.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return uniform(shapes, keep) if kind == "uniform" else erk(shapes, keep)
