"""HYDRA: the choice of weights to keep is itself learned adversarially."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import LAYERS, State, layer_counts, masked, refuse_empty_layers, scaled_scores
from prunebench.bench.pattern import Chooser, refuse_unknown


@dataclass(frozen=True)
class HYDRA:
    """Dense adversarial training, a search for the mask by learned scores, fine-tuning under the mask.

    Sehwag et al. 2020, arXiv 2002.10509, and its published code. Every weight of a convolution or linear layer has a
    score; the mask keeps the largest |score| in each layer. In the search the weights are frozen and only the scores
    are trained, through the mask, on the adversarial loss. Verified in the original: one density for all layers,
    scaled initialisation (so the search starts from magnitude pruning in each layer), straight-through gradient, three
    stages. Where the original goes wrong, we use exact counts by largest remainders (its rounding up keeps one weight
    too many), the protocol's eps (not .031), no extra data, and no weight decay on the scores. There we also freeze
    batch norm's affine part in the search (its statistics follow the pruned net), fix the mask once after the search,
    and select no checkpoint on test images. Papers use 100, 20 and 100 epochs; here the budget is divided similarly.

    `dense`, `search`: shares of the budget; the rest is for fine-tuning. `search_lr`, `lr`: peak learning rates of
    search and fine-tuning as multiples of the protocol's. `loss`: of all stages, that of the "protocol", "pgd" or
    "trades"; the paper has TRADES with beta 6, and fine-tunes at a tenth of the rate. The mask is that of the last
    scores, and fine-tuning begins with the last statistics of batch norm: averages are not used. `layers`: how the
    kept weights are divided among the layers: "uniform", as in the paper, and two additions of ours: "erk"
    (Erdos-Renyi-Kernel), and "global", as many as a global magnitude cut of the dense net leaves in each layer.
    `rho`: above 0, the search is sharpness-aware, as in `S2AP`. `shuffle`: permute the kept positions within each layer
    after the search. `pattern`: "unstructured", "2:4" or "channel", as `bench.pattern.Chooser` has them. The search
    keeps to "2:4"; with "channel" it masks single weights as without a pattern, and afterwards a channel's score is the
    sum of its filter's |scores|. Raises PrunebenchError when a stage would have no epoch, or
    when no path of kept weights leads through the net.
    """

    dense: float = 0.5
    search: float = 0.1
    search_lr: float = 1.0
    lr: float = 0.5
    loss: str = "protocol"
    layers: str = "uniform"
    rho: float = 0.0
    shuffle: bool = False
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        refuse_unknown(self.pattern)
        if not (self.dense > 0 and self.search > 0 and self.dense + self.search < 1):
            raise ValueError(f"dense = {self.dense} and search = {self.search} must be above 0 and sum to less than 1")
        if not (self.search_lr > 0 and self.lr > 0):
            raise ValueError(f"search_lr = {self.search_lr} and lr = {self.lr} must be above 0")
        if self.loss not in ("protocol", "pgd", "trades"):
            raise ValueError(f"loss = {self.loss!r} must be protocol, pgd or trades")
        if self.layers not in LAYERS:
            raise ValueError(f"layers = {self.layers!r} must be one of {', '.join(LAYERS)}")
        if not 0 <= self.rho < math.inf:
            raise ValueError(f"rho = {self.rho} must be at least 0")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Pretrain, search, fine-tune."""
        chooser = Chooser(self.pattern, lab.shapes, lab.keep, lab.model)
        refuse_empty_layers(self.layers, lab.shapes, lab.keep)
        objective = None if self.loss == "protocol" else self.loss
        gradients = (1, 2 if self.rho else 1)
        dense_epochs, search_epochs, rest = lab.divided(
            objective, {"dense": self.dense, "search": self.search}, gradients, "fine-tune"
        )
        rate = lab.protocol.training.lr
        dense = lab.fit("dense", lab.initial(), epochs=dense_epochs, objective=objective).weights
        weights = {name: dense[name] for name in lab.shapes}
        keeps = chooser.capped(layer_counts(self.layers, weights, lab.keep))
        scores, searched = lab.fit_scores(
            "search",
            dense,
            scaled_scores(weights),
            keeps,
            epochs=search_epochs,
            lr=self.search_lr * rate,
            objective=objective,
            rho=self.rho,
            by_four=chooser.by_four,
        )
        masks = chooser({name: score.abs() for name, score in scores.items()}, keeps)
        if self.shuffle:
            masks = chooser.shuffled(masks, lab.generator("shuffle"))
        return lab.fit(
            "fine-tune",
            masked(searched, masks),
            epochs=rest,
            masks=masks,
            lr=self.lr * rate,
            objective=objective,
        ).weights


@dataclass(frozen=True)
class S2AP(HYDRA):
    """HYDRA whose search looks for scores that stay good when they are perturbed: flat minima, stable masks.

    Piras et al. 2025, *S2AP: Score-space Sharpness Minimization for Adversarial Pruning*, arXiv 2510.18381: the search
    minimises the largest adversarial loss over scores s + z with ||z|| <= rho * ||s|| in each layer. As sharpness-aware
    minimisation does, one ascent step along the layer's normalised gradient stands for the maximum, and the descent
    from s takes the gradient at s + z. We know the problem and its constraint, not the code; three decisions are ours.
    The adversarial images are found once per step, against s. Batch norm's statistics follow s alone, so that a step
    feeds them once. The second gradient is charged: with 10 steps of PGD, 36 sample passes per image instead of 33. The
    search keeps its share of the budget, so it has fewer epochs than HYDRA's. With `rho=0` this is HYDRA bit for bit.

    `rho`: the radius as a share of the norm of a layer's scores. Other options as in `HYDRA`.
    """

    rho: float = 0.01
