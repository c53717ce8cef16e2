"""Adversarial training: the same for every pruner, deterministic on the CPU, resumable after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunebench.bench.data import Split, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab import resume
from prunebench.bench.lab.augmentation import crop_flip
from prunebench.bench.lab.compiled import tuned
from prunebench.bench.lab.graphed import CardGraph, Graphed, pays
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.lab.schemes import Scheme
from prunebench.bench.lab.stages import PAUSE
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import Masks
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.seeds import derive

EpochCallback = Callable[[dict[str, Any], float], None]  # a row of the curve, and the seconds that its epoch took


@tuned()
def fit(
    model: nn.Module,
    plan: TrainingPlan,
    train: Split,
    validation: Split,
    *,
    seed: int,
    masks: Masks | None = None,
    partial: Path | None = None,
    report: ProgressCallback | None = None,
    on_epoch: EpochCallback | None = None,
    compiled: bool | None = None,
    graphed: bool | None = None,
    fill: int = 1,
) -> Trained:
    """Train `model` in place by `plan`, or on a card a compiled net like it, and return the averaged weights.

    `masks` hold pruned weights at zero. An epoch's batches, augmentation and noise depend only on `seed` and its
    number. After an epoch, everything that the next one needs is written to `partial`: after each on the CPU, at most
    every PAUSE seconds on a card, and after the last. A run that finds that file resumes from it and ends in the same
    bytes. `on_epoch` receives every epoch, including those before a resume.
    `compiled`: whether to compile the net, by default on a CUDA card. `graphed`: whether to replay whole steps as a
    CUDA graph, by default where it `pays`; a ValueError if a scheme takes part in them. `fill`: as for `Still`.
    Raises PrunebenchError when the loss is no longer finite; callers that train with one step also pass the rows of
    `on_epoch` to `refuse_collapse`.
    """
    device = train.images.device
    trainer = Trainer(model, plan, masks or {}, device)
    if partial is not None:
        resume.restore(partial, trainer)
    if on_epoch is not None:
        for row, seconds in zip(trainer.curve, trainer.times, strict=True):
            on_epoch(row, seconds)
    batch = min(plan.recipe.batch, len(train))
    batches = plan.batches(len(train))
    began = saved = time.perf_counter()  # compiling is part of the first epoch
    graphed = pays(trainer, device) if graphed is None else graphed
    if graphed and type(trainer.scheme) is not Scheme:
        raise ValueError("A scheme's moments are code that a graph of the step would leave out.")
    if compiled or (compiled is None and device.type == "cuda"):
        trainer.capture(as_float(train.take(slice(0, batch)).images), graphs=not graphed, fill=fill)
    step = Graphed(trainer, CardGraph(device)) if graphed else trainer.step
    noise = torch.Generator(device)  # one for all epochs: a graph draws from the generator that it was recorded with
    for epoch in range(trainer.epoch, plan.last):
        shuffle = torch.Generator().manual_seed(derive(seed, "order", epoch))
        noise.manual_seed(derive(seed, "noise", epoch))
        order = torch.randperm(len(train), generator=shuffle).to(device)
        losses = torch.zeros((), device=device)
        for i in range(batches):
            part = train.take(order[i * batch : (i + 1) * batch])
            images = as_float(part.images)
            if plan.recipe.augment == "crop-flip":
                images = crop_flip(images, noise)
            losses += step(trainer.laid_out(images), part.labels, (epoch + i / batches) / plan.epochs, noise)
        trainer.scheme.after_epoch(trainer)
        row = {"epoch": epoch + 1, "loss": losses.item() / batches, "lr": plan.lr((epoch + 1) / plan.epochs)}
        if not math.isfinite(row["loss"]):
            raise PrunebenchError(
                f"Training diverged: the loss of epoch {epoch + 1} is {row['loss']}; lower the learning rate."
            )
        if (epoch + 1) % plan.validate_every == 0 or epoch + 1 == plan.last:
            row |= trainer.validate(validation, derive(seed, "validation", epoch))
        trainer.close_epoch(row, time.perf_counter() - began)
        due = epoch + 1 == plan.last or time.perf_counter() - saved >= PAUSE[device.type]
        if partial is not None and due:
            resume.save(partial, trainer)
            saved = time.perf_counter()
        if on_epoch is not None:
            on_epoch(row, trainer.times[-1])
        if report is not None:
            report(f"epoch {epoch + 1}/{plan.last}", epoch + 1 - plan.start, plan.last - plan.start)
        began = time.perf_counter()
    return trainer.result()


def refuse_collapse(curve: list[dict[str, Any]], chance: float = 0.1) -> None:
    """Stop one-step training whose PGD accuracy drops below half of its best (catastrophic overfitting).

    A best below three times `chance` is ignored: a net that predicts only one class may reach that much.
    """
    seen = [row["robust"] for row in curve]
    if max(seen) >= min(3 * chance, 0.9) and seen[-1] < 0.5 * max(seen):
        raise PrunebenchError(
            f"Catastrophic overfitting: PGD accuracy on validation fell from {max(seen):.0%} to {seen[-1]:.0%} in "
            f"epoch {curve[-1]['epoch']}; train with the objective pgd, or with fewer epochs."
        )
