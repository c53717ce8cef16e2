"""A scheme that moves a mask during training: small weights are dropped, others grow in the same layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.bench.data import Split
from prunebench.bench.lab.schemes import Running, Scheme
from prunebench.bench.mask import State, erk, keep_largest, refuse_nan
from prunebench.bench.seeds import derive


@dataclass(frozen=True)
class Exchange(Scheme):
    """Exchanges weights after every `every` steps, `updates` times.

    An update drops the smallest |weights| of each layer, the share `drop` at first and falling to 0 along a cosine. It
    grows as many where the step's gradient is largest among the weights pruned so far; with a `seed`, at random places.
    It costs no passes: every training computes the gradients of all weights, pruned ones too, and pays for them.
    """

    drop: float
    every: int
    updates: int
    seed: int | None = None

    def counts(self, run: Running) -> Mapping[str, int]:
        """How many weights each layer keeps after this update."""
        return {name: int(mask.sum()) for name, mask in run.masks.items()}

    def after_step(self, run: Running) -> None:
        """Exchange weights if it is time. Raises PrunebenchError for weights or gradients that are NaN."""
        number, early = divmod(run.steps, self.every)
        if early or number > self.updates:
            return
        weights = {name: weight for name, weight in run.model.named_parameters() if name in run.masks}
        wanted = {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in weights.items()}
        refuse_nan({name: weight + wanted[name] for name, weight in weights.items()})
        if self.seed is not None:
            noise = torch.Generator().manual_seed(derive(self.seed, run.steps))
            wanted = {name: torch.rand(w.shape, generator=noise).to(w.device) for name, w in weights.items()}
        share = self.drop / 2 * (1 + math.cos(math.pi * (number - 1) / self.updates))
        counts = self.counts(run)
        run.remask({n: exchanged(weights[n], wanted[n].abs(), run.masks[n], share, counts[n]) for n in weights})


@dataclass(frozen=True, kw_only=True)
class Breathing(Exchange):
    """An exchange whose kept count also moves, by a tenth at each update, and ends at `keep`.

    It falls when the gap in PGD accuracy between the two `parts`, training and validation images, has grown since the
    last update, and rises otherwise, within `room` times `keep`; this room closes linearly until the last update. The
    layers get Erdos-Renyi-Kernel counts. `passes`: the price of one measurement of the gap.
    """

    keep: int
    room: float
    parts: tuple[Split, Split]
    passes: int

    @property
    def facts(self) -> Mapping[str, Any]:
        """The fields but for the images, of which every key has the hash, and their number."""
        return {**vars(self), "parts": [len(part) for part in self.parts]}

    def begin(self, net: nn.Module) -> State:
        """The kept count and the last gap."""
        return {"count": torch.tensor(self.keep), "gap": torch.tensor(0.0, dtype=torch.float64)}

    def counts(self, run: Running) -> Mapping[str, int]:
        """How many weights each layer keeps after this update, from a new measurement of the gap."""
        train, validation = (run.validate(part, run.steps)["robust"] for part in self.parts)
        gap, room = train - validation, self.room * (1 - run.steps / (self.every * self.updates))
        count = int(run.held["count"]) * (0.9 if gap > float(run.held["gap"]) else 1.1)
        count = round(min(max(count, (1 - room) * self.keep), (1 + room) * self.keep))
        whole = {name: tuple(mask.shape) for name, mask in run.masks.items()}
        counts = erk(whole, min(count, sum(mask.numel() for mask in run.masks.values())))
        for name, value in (("count", sum(counts.values())), ("gap", gap)):
            run.held[name] = torch.full_like(run.held[name], value)
        return counts

    def extra_passes(self, epochs: int, steps: int, images: int) -> int:
        """One measurement for each update."""
        return min(steps // self.every, self.updates) * self.passes


def exchanged(weight: Tensor, wanted: Tensor, mask: Tensor, share: float, keep: int) -> Tensor:
    """A layer's mask of `keep` weights after the smallest `share` of |weight| was dropped and the most `wanted` grew.

    Weights grow only where `mask` has none and, for an exchange, `wanted` is above 0: a dead unit wants nothing, and
    its new weights would stay zero. Where too few such places are free, fewer weights are dropped. All tensors have one
    shape; `wanted` is at least 0; `share` is in [0, 1], rounded down to whole weights; ties as in `keep_largest`.
    """
    old, free = int(mask.sum()), int((wanted > 0)[~mask].sum())
    stay = min(old, keep, max(old - int(share * old), keep - free))
    stayed = keep_largest({"": weight.detach().abs()}, stay, {"": mask})[""]
    return stayed | keep_largest({"": wanted}, keep - stay, {"": ~mask})[""]
