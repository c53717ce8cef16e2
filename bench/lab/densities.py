"""Scores that are trained together with the density of each layer, as HARP does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunebench.bench.lab.schemes import Running, Scores
from prunebench.bench.mask import State, apportion, refuse_nan, split_scores, straight_through

_LOGIT = ".parametrizations.weight.0.logit"


def logit_of(density: float, lowest: float) -> Tensor:
    """The scalar for which `density_of` is `density`, float32; near the bounds, the nearest that can be trained."""
    share = min(max((density - lowest) / (1 - lowest), 1e-6), 1 - 1e-6)
    return torch.tensor(math.log(share / (1 - share)))


def density_of(logit: Tensor, lowest: float) -> Tensor:
    """The density of a layer, in (lowest, 1): lowest + (1 - lowest) * sigmoid(logit)."""
    return lowest + (1 - lowest) * logit.sigmoid()


def under_density(weight: Tensor, scores: Tensor, density: Tensor) -> Tensor:
    """`weight` times the mask of its round(`density` * size) largest |scores|, at least one.

    The scores' gradient is that of `straight_through`. That of the density, a scalar, is the sum over all entries of
    dL/dW_eff * W: each entry of the mask is taken to grow as the density does. Derivation: let an entry be kept to the
    degree sigmoid((|s| - q) / T), where the threshold q keeps the mean at the density. Then the derivatives of the
    entries by the density sum to the layer's size; with a small T they lie at the threshold, with a large T all are 1.
    """
    keep = max(1, round(float(density.detach()) * weight.numel()))
    mask = straight_through(torch.ones_like(weight), scores, keep)
    return weight * (mask + (density - density.detach()))


class _Dense(nn.Module):
    """A parametrisation: the weight under the mask of its scores and its density."""

    def __init__(self, scores: Tensor, keep: int, lowest: float) -> None:
        super().__init__()
        self.scores, self.lowest = nn.Parameter(scores.clone()), lowest
        self.logit = nn.Parameter(logit_of(keep / scores.numel(), lowest))

    @property
    def kept(self) -> Tensor:
        """How many weights the layer keeps, a real number with a gradient."""
        return density_of(self.logit, self.lowest) * self.scores.numel()

    def forward(self, weight: Tensor) -> Tensor:
        """`weight`: same shape as the scores. Raises PrunebenchError when the scores or the density are NaN."""
        refuse_nan({"a mask in training": self.scores, "its density": self.logit})
        return under_density(weight, self.scores, density_of(self.logit, self.lowest))


@dataclass(frozen=True)
class Densities(Scores):
    """Trains `scores` and one density per layer, initially that of `keeps`, towards `target` weights in all.

    The penalty on weights beyond is gamma * progress * max(0, kept / target - 1). After each step the densities are
    lowered to what `ceiling` allows, which is the target from the share `settle` of the training on. `target`:
    by default the sum of `keeps`. `lowest`: the lower bound of the densities. `rate`: multiplies their learning rate.
    The ascent of `rho` raises the scores alone.
    """

    gamma: float = 1.0
    lowest: float = 0.0
    rate: float = 1.0
    settle: float = 0.0
    target: int | None = None

    def attach(self, net: nn.Module) -> None:
        """Make the net use its weights under the masks; freeze everything else."""
        net.requires_grad_(False)
        for name, score in self.scores.items():
            layer = _Dense(score, self.keeps[name], self.lowest)
            parametrize.register_parametrization(net.get_submodule(name.removesuffix(".weight")), "weight", layer)

    def penalty(self, run: Running) -> Tensor:
        """The price of the weights beyond the target, a scalar with a gradient."""
        kept = torch.stack([layer.kept for layer in _layers(run.model)]).sum()
        return self.gamma * run.progress * (kept / self.goal - 1).clamp_min(0)

    def after_gradient(self, run: Running, again: Callable[[], Tensor]) -> None:
        """After the ascent, multiply the gradients of the densities by `rate`."""
        super().after_gradient(run, again)
        for layer in _layers(run.model):
            if layer.logit.grad is not None:
                layer.logit.grad.mul_(self.rate)

    def after_step(self, run: Running) -> None:
        """Lower the densities where more weights are kept than `ceiling` allows, as the penalty would."""
        layers = _layers(run.model)
        logits = torch.stack([layer.logit.detach() for layer in layers]).double()
        sizes = torch.tensor([layer.scores.numel() for layer in layers]).to(logits)
        shifts = lowering(logits, sizes, self.lowest, self.ceiling(run.progress))
        with torch.no_grad():
            for layer, shift in zip(layers, shifts, strict=True):
                layer.logit.add_(shift)

    @property
    def goal(self) -> int:
        """The number of weights to keep in the end."""
        return sum(self.keeps.values()) if self.target is None else self.target

    def ceiling(self, progress: float) -> float:
        """The most weights that may be kept: all at first, geometrically fewer, the target from `settle` on."""
        size = sum(score.numel() for score in self.scores.values())
        left = max(0.0, 1 - progress / self.settle) if self.settle else 0.0
        return self.goal * (size / self.goal) ** left

    def split(self, state: State) -> tuple[State, dict[str, float], State]:
        """The scores, how many weights each layer keeps (a real number), and the plain state dict of a trained net."""
        scores, plain = split_scores(state)
        logits = {name: plain.pop(name.removesuffix(".weight") + _LOGIT) for name in self.scores}
        kept = {name: float(density_of(r, self.lowest)) * self.scores[name].numel() for name, r in logits.items()}
        return {name: scores[name] for name in self.scores}, kept, plain


def lowering(logits: Tensor, sizes: Tensor, lowest: float, most: float) -> Tensor:
    """What to add to `logits` so that layers of these `sizes` keep `most` weights in all, at most 0 each.

    0 if they keep at most half a weight more. Otherwise a step against the gradient of the kept number, along which a
    penalty would move them, too: a layer with many kept weights is lowered most. The length is found by bisection, on
    the device. `logits`, `sizes`, the result: float64 (layers,).
    """
    share = logits.sigmoid()
    slope = sizes * share * (1 - share)
    slope = slope / slope.max()

    def kept(length: Tensor) -> Tensor:
        return (density_of(logits - length * slope, lowest) * sizes).sum()

    short = torch.zeros((), dtype=logits.dtype, device=logits.device)
    long, over = short + 1e6, kept(short) > most + 0.5
    for _ in range(80):
        middle = (short + long) / 2
        above = kept(middle) > most
        short, long = torch.where(above, middle, short), torch.where(above, long, middle)
    return torch.where(over, -long * slope, 0.0)


def _layers(model: nn.Module) -> list[_Dense]:
    return [module for module in model.modules() if isinstance(module, _Dense)]


def corrected(kept: Mapping[str, float], sizes: Mapping[str, int], keep: int) -> dict[str, int]:
    """Whole numbers of weights, `keep` in all, in the proportions of `kept`: at least 1 and at most all of each layer.

    Every layer gets one weight, and the others are divided in proportion to what `kept` holds beyond it. `keep`: at
    least the number of layers.
    """
    beyond = apportion(keep - len(kept), [sizes[name] - 1 for name in kept], [max(0.0, k - 1) for k in kept.values()])
    return {name: 1 + more for name, more in zip(kept, beyond, strict=True)}
