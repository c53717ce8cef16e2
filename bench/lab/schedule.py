"""The part of a schedule that a training runs, its price, and its result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.facts import Validated
from prunebench.bench.lab.objectives import OBJECTIVES
from prunebench.bench.lab.schemes import PLAIN, Scheme
from prunebench.bench.mask import State
from prunebench.bench.protocol import Threat
from prunebench.bench.recipe import Training


@dataclass(frozen=True)
class Trained:
    """A training's result: the averaged `weights` (EMA), the `last` raw ones, and a `curve` of one row per epoch.

    `times`: the seconds per epoch. `collapsed`: the clean accuracy on validation images of a training that ended near
    chance, in [0, 1]; None of one that did not, or that stopped before the end of its schedule.
    """

    weights: State
    last: State
    curve: list[dict[str, Any]]
    times: list[float]
    collapsed: float | None = None

    @property
    def seconds(self) -> float:
        """The training's duration, excluding the time to save its state."""
        return sum(self.times)

    @property
    def validated(self) -> tuple[Validated, ...]:
        """The rows of the curve that hold validation accuracies, as a record keeps them."""
        rows = [row for row in self.curve if "robust" in row]
        return tuple(
            Validated(epoch=row["epoch"], clean=round(row["clean"], 6), robust=round(row["robust"], 6)) for row in rows
        )


@dataclass(frozen=True)
class TrainingPlan:
    """The part of a schedule to train: epochs `start` to `stop` of `epochs`, by `scheme`."""

    recipe: Training
    threat: Threat
    epochs: int
    start: int = 0
    stop: int | None = None
    scheme: Scheme = PLAIN

    @property
    def last(self) -> int:
        """The epoch before which to stop."""
        return self.epochs if self.stop is None else self.stop

    def batches(self, images: int) -> int:
        """Full batches per epoch; the images left over get their turn in other epochs."""
        return images // min(self.recipe.batch, images)

    def seen(self, images: int) -> int:
        """How many of `images` training images one epoch trains on."""
        return self.batches(images) * min(self.recipe.batch, images)

    @property
    def validate_every(self) -> int:
        """Epochs between validations; one-step training is validated after every epoch, because it may collapse."""
        return 1 if self.recipe.one_step else self.recipe.validate_every

    def passes(self, images: int, gradients: int | None = None) -> int:
        """The price in sample passes; `gradients`: of the loss per step, if not as many as the scheme takes.

        Raises PrunebenchError for a scheme that declares less than nothing.
        """
        each = OBJECTIVES[self.recipe.objective].passes(self.recipe.steps, gradients or self.scheme.gradients)
        epochs = max(0, self.last - self.start)
        extra = self.scheme.extra_passes(epochs, epochs * self.batches(images), images)
        if self.scheme.gradients < 1 or extra < 0:
            raise PrunebenchError(
                f"A scheme declares {self.scheme.gradients} gradients per step and {extra} extra sample passes; a "
                "training takes at least one gradient, and nothing is paid back."
            )
        return epochs * self.seen(images) * each + extra

    def lr(self, progress: float) -> float:
        """The learning rate at `progress`, in [0, 1), through the schedule."""
        if self.recipe.schedule == "cosine":
            return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.recipe.lr * (1.0 if progress < 0.75 else 0.1)
