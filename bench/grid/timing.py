"""How fast this device trains and attacks: short trials of the code that a run calls, each kind of work tried once."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from prunebench.bench.attacks.base import Attack
from prunebench.bench.attacks.pgd import usual_pgd
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.data import Split, as_float
from prunebench.bench.lab.schedule import Plan
from prunebench.bench.lab.train import fit
from prunebench.bench.lab.trainer import VALIDATED
from prunebench.bench.mask import Masks
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.score.referee import Referee, batch_size, exact_float32

EPOCHS = 5  # of a trial of training: the first warms up, the last one validates
CALLS = 8  # forwards at the least in a trial of an attack
SMALL = 16  # images at the least
# Under an eps at which nothing falls, an attack works on all images from its first step to its last.
NOWHERE = "1/1000000"


@dataclass(frozen=True)
class Epochs:
    """What a training takes, in seconds: to begin with, for an epoch, and for a validation."""

    start: float
    epoch: float
    validation: float

    def seconds(self, plan: Plan) -> float:
        """What the training by `plan` takes."""
        every = plan.validate_every
        validations = plan.last // every - plan.start // every + (plan.last % every > 0)
        return self.start + (plan.last - plan.start) * self.epoch + validations * self.validation


@dataclass
class Pace:
    """The pace of one process on `device`; a trial takes some `seconds`. Densities a fifth apart count as the same."""

    protocol: Protocol
    train: Split
    validation: Split
    device: torch.device
    seconds: float
    _epochs: dict[object, Epochs] = field(default_factory=dict)
    _attacks: dict[object, dict[str, float]] = field(default_factory=dict)
    spent: float = 0.0  # seconds on trials
    once: float = 0.0  # seconds that the first trial took because it was the first of its process

    def epochs(self, plan: Plan, model: Callable[[], nn.Module], masks: Masks | None, density: float) -> Epochs:
        """What epochs of the training by `plan` of `model()` under `masks` take; `density`: of its weights."""
        recipe = plan.recipe.model_dump(exclude={"lr", "weight_decay", "epochs"})
        kind = (*recipe.items(), masks is None, _alike(density))
        if kind not in self._epochs:
            began = time.perf_counter()
            self._epochs[kind] = self._try_training(plan, model, masks)
            self.spent += time.perf_counter() - began
        return self._epochs[kind]

    def _try_training(self, plan: Plan, model: Callable[[], nn.Module], masks: Masks | None) -> Epochs:
        # No validation before the last epoch, where there always is one; one-step training validates in every epoch.
        recipe = plan.recipe.model_copy(update={"validate_every": EPOCHS + 1})
        batch, whole = min(recipe.batch, len(self.train)), len(self.train)

        def tried(epochs: int, images: int) -> tuple[list[float], list[float]]:
            """The seconds of each epoch, and when it had begun and ended, what is written down and all."""
            train = self.train.take(slice(0, images))
            validation = self.validation.take(slice(0, images))
            asked, times, ends = Plan(recipe, plan.threat, epochs), list[float](), [time.perf_counter()]
            with tempfile.TemporaryDirectory() as folder:
                fit(
                    model(),
                    asked,
                    train,
                    validation,
                    seed=0,
                    masks=masks,
                    partial=Path(folder, "partial"),
                    report=lambda *_: ends.append(time.perf_counter()),
                    log=lambda _, seconds: times.append(seconds),
                )
            return times, ends

        _, first = tried(2, SMALL)
        (_, each, _), ends = tried(3, SMALL)  # an epoch that compiles, and one that validates, around it
        if not self._epochs:
            self.once = max(0.0, (first[1] - first[0]) - (ends[1] - ends[0]))
        fits = int(self.seconds / EPOCHS / (each / SMALL))
        images = whole if fits >= whole else fits // batch * batch if fits >= batch else max(SMALL, fits)
        times, ends = tried(EPOCHS, images)
        middle = statistics.median(times[1:-1])
        save = (ends[-1] - ends[1] - sum(times[1:])) / (EPOCHS - 1)
        seen = Plan(recipe, plan.threat, 1).seen
        shown = min(VALIDATED, len(self.validation))
        return Epochs(
            start=max(0.0, ends[1] - ends[0] - middle - save),
            epoch=middle * seen(whole) / seen(images) + save,
            validation=max(0.0, times[-1] - middle) * shown / min(shown, images),
        )

    def attacks(
        self, model: Callable[[], nn.Module], density: float, test: Split, shares: dict[str, float]
    ) -> dict[str, float]:
        """Seconds a sample pass for each ranked attack and for "pgd", on as many images of a shard as it reaches.

        `shares`: the share of the images that an attack reaches.
        """
        kind = _alike(density)
        if kind not in self._attacks:
            began = time.perf_counter()
            referee = Referee(
                model(), self.protocol, batch_size(self.protocol, self.protocol.model, self.device.type), self.device
            )
            with exact_float32():
                self._attacks[kind] = {
                    name: self._try_attack(referee, listed.attack, test, shares[name])
                    for name, listed in suite_of(self.protocol).ranked.items()
                } | {"pgd": self._try_attack(referee, usual_pgd(50), test, shares["pgd"])}
            self.spent += time.perf_counter() - began
        return self._attacks[kind]

    def _try_attack(self, referee: Referee, attack: Attack, test: Split, share: float) -> float:
        shard = test.take(referee.shards(len(test))[0])
        images = as_float(shard.images)[: max(1, round(share * len(shard)))]
        if self._call(referee, images[:SMALL]) * len(images) / SMALL > self.seconds / CALLS:
            images = images[:SMALL]
        return self.attack(referee, attack, images)

    def attack(self, referee: Referee, attack: Attack, images: torch.Tensor) -> float:
        """Seconds a sample pass of `attack` on `images`, float32 (n, c, h, w), as long as none of them falls."""
        labels = referee.logits(images).argmax(1)  # what the net says is right, so that it has something to lose
        calls: list[tuple[float, int]] = []

        def listen(passes: int) -> None:
            calls.append((time.perf_counter(), passes))
            if len(calls) > CALLS and calls[-1][0] - calls[1][0] > self.seconds:
                raise _EnoughError

        nowhere = Threat(norm=self.protocol.threat.norm, eps=NOWHERE)
        try:
            referee.fooled(attack, images, labels, 0, nowhere, listen)
            calls.append((time.perf_counter(), 0))
        except _EnoughError:
            pass
        self.wait()
        ended = time.perf_counter()
        return (ended - calls[1][0]) / sum(passes for _, passes in calls[1:-1])  # the last one was not run

    def _call(self, referee: Referee, images: torch.Tensor) -> float:
        """Seconds of a forward, the second time."""
        seconds = 0.0
        for _ in range(2):
            began = time.perf_counter()
            with torch.no_grad():
                referee.attacked(images.to(self.device))
            self.wait()
            seconds = time.perf_counter() - began
        return seconds

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _EnoughError(Exception):
    """The trial has taken its time."""


def _alike(density: float) -> int:
    """The same number for densities that are less than about a fifth apart."""
    return round(4 * math.log2(max(density, 1e-6)))  # nothing may be left of a net
