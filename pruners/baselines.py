"""The baselines for every method: no pruning, random pruning, and one cut by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import State, erk, masked, rescaled
from prunebench.bench.pattern import Chooser, refuse_unknown


@dataclass(frozen=True)
class Dense:
    """The whole budget in one adversarial training of the dense net: what pruning has to be compared with.

    `shuffle` has no effect, because the mask is all ones; it is accepted so that a whole grid can be shuffled.
    """

    shuffle: bool = False
    prunes: ClassVar[bool] = False

    def __call__(self, job: Job, lab: Lab) -> State:
        """Train."""
        return lab.fit("train", lab.initial(), epochs=lab.epochs).weights


@dataclass(frozen=True)
class Random:
    """A random mask at initialisation with Erdos-Renyi-Kernel layer densities, then the whole budget in training.

    Densities: Evci et al. 2020, arXiv 1911.11134. The kept weights are divided by the square root of their layer's
    density, since otherwise the signal of a very sparse net dies out. `shuffle` draws the positions again. `pattern`:
    "unstructured", "2:4" or "channel", as `bench.pattern.Chooser` has them; "channel" keeps its own layer densities.
    """

    shuffle: bool = False
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        refuse_unknown(self.pattern)

    def __call__(self, job: Job, lab: Lab) -> State:
        """Draw, then train under the mask."""
        chooser = Chooser(self.pattern, lab.shapes, lab.keep, lab.model)
        noise = lab.generator("mask")
        scores = {name: torch.rand(*shape, generator=noise) for name, shape in lab.shapes.items()}
        masks = chooser(scores, chooser.capped(erk(lab.shapes, lab.keep)))
        if self.shuffle:
            masks = chooser.shuffled(masks, lab.generator("shuffle"))
        start = rescaled(lab.initial(), masks, outputs=self.pattern == "channel")
        return lab.fit("train", start, epochs=lab.epochs, masks=masks).weights


@dataclass(frozen=True)
class Magnitude:
    """Dense adversarial training, one global cut of the smallest weights, fine-tuning under the mask.

    `dense`: the share of the budget for dense training, in (0, 1). `lr`: the peak learning rate of the fine-tuning as
    a multiple of the protocol's. `shuffle`: permute the kept positions within each layer after the cut. `pattern`:
    "unstructured", "2:4" or "channel", as `bench.pattern.Chooser` has them; a channel's score is its filter's L1 norm.
    """

    dense: float = 0.5
    lr: float = 0.5
    shuffle: bool = False
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        refuse_unknown(self.pattern)
        if not 0 < self.dense < 1 or not self.lr > 0:
            raise ValueError(f"dense = {self.dense} must be in (0, 1) and lr = {self.lr} above 0")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Train, cut, fine-tune."""
        chooser = Chooser(self.pattern, lab.shapes, lab.keep, lab.model)
        epochs = max(1, round(self.dense * lab.epochs))
        lab.refuse_short({"fine-tune": lab.epochs - epochs}, way_out="lower dense")
        dense = lab.fit("dense", lab.initial(), epochs=epochs).weights
        masks = chooser({name: dense[name].abs() for name in lab.shapes})
        if self.shuffle:
            masks = chooser.shuffled(masks, lab.generator("shuffle"))
        lr = self.lr * lab.protocol.training.lr
        return lab.fit("fine-tune", masked(dense, masks), epochs=lab.epochs - epochs, masks=masks, lr=lr).weights
