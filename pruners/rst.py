"""RST: robust scratch tickets, nets whose weights are never trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import State, keep_largest_by_layer, layer_counts, masked, refuse_empty, shuffled


def signed_constants(weights: State, keeps: dict[str, int]) -> State:
    """Each layer's weights as +c or -c by their signs, c = sqrt(2 / (fan_in * density)), float32.

    The signed Kaiming constant of Ramanujan et al. 2020 (arXiv 1911.13299), scaled by the density `keeps[name]` / size
    so that the signal keeps its variance under a mask. Zero counts as positive.
    """

    def constant(weight: Tensor, keep: int) -> Tensor:
        size = math.sqrt(2 * weight.numel() / (weight[0].numel() * keep))
        return torch.where(weight < 0, -size, size)

    return {name: constant(weight, keeps[name]) for name, weight in weights.items()}


@dataclass(frozen=True)
class RST:
    """A sparse net found inside a random one: only the mask is learned, on the adversarial loss.

    Fu et al. 2021, *Drawing Robust Scratch Tickets*, arXiv 2110.14068, which searches by the edge-popup of Ramanujan et
    al. 2020 (arXiv 1911.13299): weights are frozen at random signs of one constant per layer, and each has a score; the
    mask keeps the largest |score| in each layer, gradients pass straight through it, and nothing is trained afterwards.
    Published nets of this kind fall far more under AutoAttack than under PGD, so they could test whether the referee
    sees through masked gradients; on the digits the gap is little wider than that of other methods. Our reading: signs
    are those of the common initial weights; biases are zero (the paper's nets have none) and batch norm's affine part
    stays at one and zero; scores start uniform in +-1/sqrt(fan_in) and get no weight decay; the whole budget is one
    search, with the last scores and not an average. No layer may be empty: with no weights left it would stay so, since
    the counts are fixed.

    `layers`: "uniform" (the paper's) or "erk"; a global cut has no meaning for constants. `lr`: peak learning rate of
    the scores as a multiple of the protocol's; on the digits at .9 a rate of 1 ends at equal logits for every image,
    and .03 was chosen on validation images. `shuffle`: permute the kept positions within each layer at the end, which
    leaves an untrained net.
    """

    layers: str = "uniform"
    lr: float = 0.03
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.layers not in ("uniform", "erk"):
            raise ValueError(f"layers = {self.layers!r} must be uniform or erk")
        if not self.lr > 0:
            raise ValueError(f"lr = {self.lr} must be above 0")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Fix the weights, search the mask."""
        start = lab.initial()
        weights = {name: start[name] for name in lab.shapes}
        keeps = layer_counts(self.layers, weights, lab.keep)
        refuse_empty(keeps)
        zeros = {name: torch.zeros_like(value) for name, value in start.items() if name.endswith("bias")}
        frozen = start | zeros | signed_constants(weights, keeps)
        scores, searched = lab.fit_scores(
            "search",
            frozen,
            {name: self._scores(lab, name) for name in weights},
            keeps,
            epochs=lab.epochs,
            lr=self.lr * lab.protocol.training.lr,
        )
        masks = keep_largest_by_layer({name: score.abs() for name, score in scores.items()}, keeps)
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        return masked(searched, masks)

    def _scores(self, lab: Lab, name: str) -> Tensor:
        """The first scores of a layer, uniform in +-1/sqrt(fan_in)."""
        shape = lab.shapes[name]
        bound = math.prod(shape[1:]) ** -0.5
        return (2 * torch.rand(shape, generator=lab.generator(f"scores {name}")) - 1) * bound
