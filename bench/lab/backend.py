"""The backends that compute a lab's stages: trainings, loops and calibrations.

A lab checks, names and charges stages; a `Backend` does the work. `Computed` runs them for real, others dry or watched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from prunebench.bench.data import Split
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab.checks import collapsed, refuse_blind, refuse_infinite
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.lab.schemes import Scores
from prunebench.bench.lab.stages import PAUSE, StageStore, load_stage, save_stage
from prunebench.bench.lab.tensorboard import Curves
from prunebench.bench.lab.train import fit, refuse_collapse
from prunebench.bench.mask import Masks, State
from prunebench.bench.progress import ProgressCallback

SAVE_EVERY = 5.0  # seconds between two checkpoints of a loop, or PAUSE if that is more


@dataclass(frozen=True)
class Fit:
    """A training of `model()` by `plan` under `masks`.

    `key`: identifies everything that its result depends on. `density`: the share of prunable weights kept.
    """

    stage: str
    key: str
    plan: TrainingPlan
    model: Callable[[], nn.Module]
    masks: Masks | None
    density: float
    train: Split
    validation: Split
    seed: int

    @property
    def passes(self) -> int:
        """The price in sample passes."""
        return self.plan.passes(len(self.train))

    @property
    def fixed(self) -> Masks | None:
        """Masks with the kept counts of each layer; of a training of scores, only whether a layer keeps any weight."""
        scheme = self.plan.scheme
        if isinstance(scheme, Scores):
            return {name: torch.full(score.shape, scheme.keeps[name] > 0) for name, score in scheme.scores.items()}
        return self.masks


@dataclass(frozen=True)
class Loop:
    """`steps` calls of `step` from the tensors `start`, priced at `passes`. `key`: as in `Fit`."""

    stage: str
    key: str
    start: State
    step: Callable[[State, int], State]
    steps: int
    passes: int
    device: torch.device


@dataclass(frozen=True)
class Calibration:
    """The batch-norm statistics of `net`, averaged over `batches` batches `batch(0)`, `batch(1)`, ...: (n, c, h, w).

    `passes`: the price of all batches.
    """

    stage: str
    net: nn.Module
    batch: Callable[[int], Tensor]
    batches: int
    passes: int


class Backend(Interface):
    """The interface through which a lab computes its stages."""

    def train(self, asked: Fit) -> Trained:
        """The result of the training."""

    def loop(self, asked: Loop) -> tuple[State, float]:
        """The final state, and the seconds that the steps took."""

    def calibrate(self, asked: Calibration) -> State:
        """The state dict of the net."""


@dataclass(frozen=True)
class Computed:
    """Computes every stage, trainings and loops only once.

    `folder`: where finished stages are kept. `curves`: writes the training curves.
    """

    folder: Path
    curves: Curves | None = None

    def train(self, asked: Fit) -> Trained:
        """The training, from the store if it is there.

        Raises PrunebenchError for masks under which no logit depends on the image, for what the scheme refuses, and for
        a training that diverges. A net that ends near chance is only marked, since a later stage may recover; one-step
        training stops there.
        """
        asked.plan.scheme.check()
        if (masks := asked.fixed) is not None:
            refuse_blind(asked.stage, asked.model(), masks, tuple(asked.train.images.shape[1:]))
        images, curve = len(asked.train), None
        if self.curves is not None:
            curve = self.curves.stage(asked.stage, images=asked.plan.seen(images), sparsity=1 - asked.density)
        rows: list[dict[str, Any]] = []

        def on_epoch(row: dict[str, Any], seconds: float) -> None:
            rows.append(row)
            if curve is not None:
                curve.add(row, seconds)
            if asked.plan.recipe.one_step:
                refuse_collapse(rows, chance=1 / (int(asked.train.labels.max()) + 1))

        def compute(partial: Path) -> tuple[State, Any]:
            try:
                trained = fit(
                    asked.model(),
                    asked.plan,
                    asked.train,
                    asked.validation,
                    seed=asked.seed,
                    masks=asked.masks,
                    partial=partial,
                    report=self._named(asked.stage),
                    on_epoch=on_epoch,
                )
            except PrunebenchError as error:
                raise PrunebenchError(f"Stage {asked.stage!r}: {error}") from None
            refuse_infinite(asked.stage, trained.weights)
            refuse_infinite(asked.stage, trained.last)
            halves = {f"weights/{key}": tensor for key, tensor in trained.weights.items()}
            halves |= {f"last/{key}": tensor for key, tensor in trained.last.items()}
            return halves, {"curve": trained.curve, "times": trained.times}

        halves, about = StageStore(self.folder).remember(asked.key, compute)
        weights, last = (
            {key.removeprefix(half): tensor for key, tensor in halves.items() if key.startswith(half)}
            for half in ("weights/", "last/")
        )
        if curve is not None:
            curve.close(about["curve"], about["times"])
        ended = asked.plan.last == asked.plan.epochs
        near = collapsed(about["curve"], asked.validation.labels) if ended else None
        return Trained(weights, last, about["curve"], about["times"], near)

    def loop(self, asked: Loop) -> tuple[State, float]:
        """The loop, from the store if it is there; a killed loop resumes from its last checkpoint.

        Raises PrunebenchError if its result holds NaN or infinity.
        """
        report = self._named(asked.stage)

        def compute(partial: Path) -> tuple[State, Any]:
            state, about = load_stage(partial) or (asked.start, {"done": 0, "seconds": 0.0})
            state = {name: tensor.to(asked.device) for name, tensor in state.items()}
            saved = time.perf_counter()
            for index in range(about["done"], asked.steps):
                began = time.perf_counter()
                state = asked.step(state, index)
                about = {"done": index + 1, "seconds": about["seconds"] + time.perf_counter() - began}
                if time.perf_counter() - saved > max(SAVE_EVERY, PAUSE[asked.device.type]):
                    save_stage(partial, state, about)
                    saved = time.perf_counter()
                report(f"step {index + 1}/{asked.steps}", index + 1, asked.steps)
            refuse_infinite(asked.stage, state)
            return state, about

        state, about = StageStore(self.folder).remember(asked.key, compute)
        return {name: tensor.cpu() for name, tensor in state.items()}, about["seconds"]

    def calibrate(self, asked: Calibration) -> State:
        """The calibration, which is never stored."""
        return calibrate(asked)

    def _named(self, stage: str) -> ProgressCallback:
        """What hears of the progress of the stage; here nobody does."""
        return lambda what, done, total: None


def calibrate(asked: Calibration) -> State:
    """The state dict of the net with the statistics of the given batches."""
    for module in asked.net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain average
    with torch.no_grad():
        for number in range(asked.batches):
            asked.net.train()(asked.batch(number))
    return {name: tensor.cpu() for name, tensor in asked.net.state_dict().items()}
