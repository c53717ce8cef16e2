"""Which part of which schedule a training goes through, what that costs, and what it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prunebench.bench.lab.objectives import OBJECTIVES
from prunebench.bench.mask import State
from prunebench.bench.protocol import Threat, Training


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the averaged `weights` (EMA), the `last` raw ones, and a `curve` of a row an epoch.

    `times`: the seconds that each of those epochs took.
    """

    weights: State
    last: State
    curve: list[dict[str, Any]]
    times: list[float]

    @property
    def seconds(self) -> float:
        """What the training took, without writing down where it is."""
        return sum(self.times)


@dataclass(frozen=True)
class Plan:
    """Which part of which schedule is trained: epochs `start` to `stop` of a schedule of `epochs`."""

    recipe: Training
    threat: Threat
    epochs: int
    start: int = 0
    stop: int | None = None

    @property
    def last(self) -> int:
        """The epoch to stop before."""
        return self.epochs if self.stop is None else self.stop

    def batches(self, images: int) -> int:
        """Whole batches in an epoch; what is left over comes in another epoch."""
        return images // min(self.recipe.batch, images)

    def seen(self, images: int) -> int:
        """How many of so many images an epoch trains on."""
        return self.batches(images) * min(self.recipe.batch, images)

    @property
    def validate_every(self) -> int:
        """Epochs from one validation to the next; one-step training is watched after each, for it may collapse."""
        return 1 if self.recipe.one_step else self.recipe.validate_every

    def passes(self, images: int) -> int:
        """The price in sample passes."""
        each = OBJECTIVES[self.recipe.objective].passes(self.recipe.steps)
        return max(0, self.last - self.start) * self.seen(images) * each

    def lr(self, progress: float) -> float:
        """The learning rate when `progress`, in [0, 1), of the schedule is done."""
        if self.recipe.schedule == "cosine":
            return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.recipe.lr * (1.0 if progress < 0.75 else 0.1)
