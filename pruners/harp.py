"""HARP: how many weights each layer keeps is learned together with which ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.densities import Densities, corrected
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import LAYERS, State, keep_largest_by_layer, layer_counts, masked, scaled_scores, shuffled


@dataclass(frozen=True)
class HARP:
    """Dense adversarial training, a search for layer densities and the mask together, fine-tuning under the mask.

    Zhao & Wressnegger 2023, *Holistic Adversarially Robust Pruning*, ICLR, arXiv 2412.14714. As in HYDRA, the search
    freezes the weights and trains a score for each; the mask keeps the largest |score| in each layer. How many, a
    parameter r per layer says: density = lowest + (1 - lowest) * sigmoid(r). Both are trained on the adversarial loss
    plus gamma * max(0, kept / target - 1), where gamma rises during the search: robustness first, then the target.
    Verified in the published code: a start at a density of .1 with uniform counts and HYDRA's scores, also for smaller
    targets; the sigmoid with its lower bound; the gradient of a density, the sum of dL/dW_eff * W over all entries of
    the layer (`bench.lab.densities.under_density` derives it).

    There gamma grows with the epochs until the target is met, and no net counts before. Our searches are too short for
    a penalty alone: one ended at 8 times the target. So gamma rises linearly from 0, and the total also has a ceiling,
    which falls geometrically from all weights to the target; above it, the r are lowered as the penalty would lower
    them, as far as needed. At the end the counts are rounded to the exact total, at least one weight in each layer.
    Scores and r share the learning rate, without weight decay. The rest is as in HYDRA, and with frozen densities that
    start at the target (`rate=0`) this is HYDRA bit for bit, unless a layer starts below the lower bound.

    `gamma`: the penalty's weight at the end. `floor`: the lower bound of a layer's density, as a share of the target
    density. `rate`: the learning rate of r as a multiple of the scores'. `start`: the density to start from, or the
    target's if that is higher. `settle`: the share of the search after which the target holds, in [0, 1). `layers`:
    "uniform", "erk" or "global", the counts to start from. `dense`, `search`, `search_lr`, `lr`, `loss`, `shuffle`: as
    in HYDRA. `rho`: as in S2AP, on the scores. Raises PrunebenchError when a stage would have no epoch, or there are
    more layers than weights to keep.
    """

    gamma: float = 1.0
    floor: float = 0.1
    rate: float = 1.0
    start: float = 0.1
    settle: float = 0.5
    layers: str = "uniform"
    dense: float = 0.5
    search: float = 0.1
    search_lr: float = 1.0
    lr: float = 0.5
    loss: str = "protocol"
    rho: float = 0.0
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not (self.dense > 0 and self.search > 0 and self.dense + self.search < 1):
            raise ValueError(f"dense = {self.dense} and search = {self.search} must be above 0 and sum to less than 1")
        for name in ("search_lr", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0")
        for name in ("gamma", "rate", "rho"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 0")
        if not (0 <= self.floor < 1 and 0 <= self.settle < 1):
            raise ValueError(f"floor = {self.floor} and settle = {self.settle} must be in [0, 1)")
        if not 0 < self.start <= 1:
            raise ValueError(f"start = {self.start} must be in (0, 1]")
        if self.loss not in ("protocol", "pgd", "trades"):
            raise ValueError(f"loss = {self.loss!r} must be protocol, pgd or trades")
        if self.layers not in LAYERS:
            raise ValueError(f"layers = {self.layers!r} must be one of {', '.join(LAYERS)}")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Pretrain, search, correct the counts, fine-tune."""
        if lab.keep < len(lab.shapes):
            raise PrunebenchError(
                f"Sparsity {job.sparsity} keeps {lab.keep} weights, too few for one in each of the {len(lab.shapes)} "
                "layers; lower the sparsity."
            )
        objective = None if self.loss == "protocol" else self.loss
        gradients = (1, 2 if self.rho else 1)
        dense_epochs, search_epochs, rest = lab.divided(
            objective, {"dense": self.dense, "search": self.search}, gradients, "fine-tune"
        )
        rate = lab.protocol.training.lr
        dense = lab.fit("dense", lab.initial(), epochs=dense_epochs, objective=objective).weights
        weights = {name: dense[name] for name in lab.shapes}
        sizes = {name: weight.numel() for name, weight in weights.items()}
        begin = max(lab.keep, round(self.start * lab.prunable))
        scheme = Densities(
            scaled_scores(weights),
            corrected(layer_counts(self.layers, weights, begin), sizes, begin),
            self.rho,
            gamma=self.gamma,
            lowest=self.floor * lab.keep / lab.prunable,
            rate=self.rate,
            settle=self.settle,
            target=lab.keep,
        )
        found = lab.fit(
            "search",
            dense,
            epochs=search_epochs,
            lr=self.search_lr * rate,
            objective=objective,
            weight_decay=0.0,
            scheme=scheme,
        )
        scores, kept, searched = scheme.split(found.last)
        keeps = corrected(kept, sizes, lab.keep)
        masks = keep_largest_by_layer({name: score.abs() for name, score in scores.items()}, keeps)
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        return lab.fit(
            "fine-tune", masked(searched, masks), epochs=rest, masks=masks, lr=self.lr * rate, objective=objective
        ).weights
