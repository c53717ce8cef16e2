"""How fast this device trains and attacks, from timing the code of a run on a few images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn

from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.data import Split, as_float
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.train import fit
from prunebench.bench.mask import Masks
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.score.arithmetic import FLOAT32, Arithmetic, exact_float32
from prunebench.bench.score.referee import Referee, batch_size

EPOCHS = 4  # of a timed training; the first is a warm-up
CALLS = 8  # minimum forwards of a timed attack
SMALL = 16  # minimum images
NOWHERE = "1/1000000"  # an eps so small that no image is fooled, so that an attack works on all images to the end


def training_pace(
    plan: TrainingPlan, model: Callable[[], nn.Module], masks: Masks | None, train: Split, seconds: float
) -> tuple[float, float]:
    """Seconds of fixed cost of the training by `plan` (mostly compilation), and seconds per sample pass.

    A short training of `model()` under `masks` is timed for about `seconds`, on the first images of `train`.
    """
    recipe = plan.recipe.model_copy(update={"validate_every": EPOCHS})
    trial = TrainingPlan(recipe, plan.threat, EPOCHS, scheme=plan.scheme)

    def timed(images: int) -> tuple[float, float]:
        part = train.take(slice(0, images))
        first, *others = fit(model(), trial, part, part.take(slice(0, 1)), seed=0, masks=masks).times
        epoch = statistics.median(others)
        return max(0.0, first - epoch), epoch * EPOCHS / trial.passes(images)

    batch = min(recipe.batch, len(train))
    least = batch if train.images.device.type == "cuda" else min(SMALL, batch)  # a GPU needs whole batches
    _, each = timed(least)  # the first training in a process is the slowest
    fits = int(least * seconds / (each * trial.passes(least)))
    return timed(min(len(train), max(least, fits // batch * batch or fits)))


def attack_paces(
    net: nn.Module,
    rules: Protocol,
    test: Split,
    robust: float,
    device: torch.device,
    seconds: float,
    *,
    best: bool = False,
    arithmetic: Arithmetic = FLOAT32,
) -> dict[str, float]:
    """Seconds per sample pass, by attack; one weak attack is timed for all of them.

    Each is timed for about `seconds` on the share `robust` of a shard of `test`, on which most attacks work.
    `best`: time the short attacks of the suite for the best-known number too. `arithmetic`: that of the attacks.
    """
    suite = suite_of(rules)
    timed = dict(suite.ranked) | {suite.curve: suite.weak[suite.curve]} | dict(suite.best.short if best else {})
    referee = Referee(net, rules, batch_size(rules, rules.model, device.type), device, arithmetic)
    shard = as_float(test.take(referee.shards(len(test))[0]).images)
    images = shard[: max(SMALL, round(robust * len(shard)))]
    with exact_float32():
        referee.logits(images)  # warm-up
        began = time.perf_counter()
        referee.logits(images)
        if CALLS * (time.perf_counter() - began) > seconds:
            images = images[:SMALL]
        paces = {name: attack_pace(referee, listed, images, seconds) for name, listed in timed.items()}
    return dict.fromkeys(suite.weak, paces[suite.curve]) | paces


def attack_pace(referee: Referee, listed: Listed, images: torch.Tensor, seconds: float) -> float:
    """Seconds per sample pass of an attack on `images`, float32 (n, c, h, w), none of which is fooled.

    The attack is stopped after `seconds` and CALLS forwards, if it does not end earlier.
    """
    labels = referee.logits(images).argmax(1)  # the net's own predictions, so that every image starts out correct
    calls: list[tuple[float, int]] = []  # start time and sample passes of each forward

    def listen(passes: int) -> None:
        calls.append((time.perf_counter(), passes))
        if len(calls) > CALLS and calls[-1][0] - calls[1][0] > seconds:
            raise _EnoughError

    with suppress(_EnoughError):
        nowhere = Threat(norm=referee.rules.threat.norm, eps=NOWHERE)
        how = FLOAT32 if listed.exact else referee.arithmetic
        referee.fooled(listed.attack, images, labels, 0, nowhere, listen, listed.surrogate, how)
    return (calls[-1][0] - calls[1][0]) / sum(passes for _, passes in calls[1:-1])


class _EnoughError(Exception):
    """Raised when the attack has been timed for long enough."""
