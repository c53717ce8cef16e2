"""How fast a device trains and scores on random images, as `prunebench plan` has it, and a plain loop beside it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.datasets import Info
from prunebench.bench.grid.dry_run import Rehearsal
from prunebench.bench.grid.plan import forecast
from prunebench.bench.grid.run import grid
from prunebench.bench.models import build
from prunebench.bench.protocol import PROTOCOLS, Protocol

SHAPES = {"digits-cnn": (1, 8, 8), "mnist-cnn": (1, 28, 28)}
STEPS = 12  # of the plain loop; the first two are warm-up
TEST, CLEAN, ROBUST = 10_000, 0.85, 0.45  # of the scoring
EPOCHS = 5_000  # of the planned training, in which compilation and one validation hardly count
LR = 0.01  # small, because a training on random labels must not diverge


@dataclass(frozen=True)
class Noise(Store):
    """Random images of `shape` with random labels in ten classes, in place of any data set."""

    shape: tuple[int, int, int] = (3, 32, 32)

    def info(self, name: str) -> Info:
        """What a net must know about the images."""
        return Info(10, self.shape, (0.5,) * self.shape[0], (0.25,) * self.shape[0])

    def training(self, name: str, *, validation: int, train: int | None = None) -> tuple[Split, Split]:
        """The images to train on, and to validate on."""
        return self.testing(name, train), self.testing(name, validation)

    def testing(self, name: str, count: int | None = None) -> Split:
        """`count` images (None for 1), the same whenever that many are asked for."""
        chance, count = torch.Generator().manual_seed(0), count or 1
        pixels = torch.randint(256, (count, *self.shape), generator=chance, dtype=torch.uint8)
        return Split(pixels, torch.randint(10, (count,), generator=chance))


def measure(what: str, arch: str, images: int, device: str) -> dict[str, Any]:
    """A `line` of the table and its figures; `what` is "smoke", "convolutions", "train", "score" or "steps".

    "train" measures an epoch of `images` images, "score" the scoring of a sparse net, "steps" ways of training.
    """
    if what == "smoke":
        from tools.gpu_smoke import smoke

        with TemporaryDirectory() as folder:
            return {"line": f"{device}: {smoke(device, Path(folder))}"}
    if what == "convolutions":
        from tools.gpu_convolutions import convolutions

        info = Noise(Path(), shape=SHAPES.get(arch, (3, 32, 32))).info("")
        batch = min(images, PROTOCOLS["cifar10-linf"].training.batch)
        table = convolutions(arch, info, batch, device)
        told = ", ".join(f"{name} {' / '.join(f'{ms:.3g}' for ms in row.values())}" for name, row in table.items())
        return {"line": f"{arch}, batch {batch}, channels first / last: {told} ms", "milliseconds": table}
    if what == "steps":
        from tools.gpu_steps import step_times

        nets = dict.fromkeys([*SHAPES, arch])
        rules = _rules("", images)
        ways = {net: step_times(net, rules, Noise(Path(), shape=SHAPES.get(net, (3, 32, 32))), device) for net in nets}
        rows = (f"{net} {', '.join(f'{name} {ms:.3g}' for name, ms in row.items())}" for net, row in ways.items())
        return {"line": f"ms a step: {'; '.join(rows)}", "milliseconds": ways}
    return {"line": pace(what, arch, images, device)}


def pace(what: str, arch: str, images: int, device: str) -> str:
    """The time of an epoch, or of a scoring, as `prunebench plan` has it."""
    rules, store = _rules(arch, images), Noise(Path(), shape=SHAPES.get(arch, (3, 32, 32)))
    recipe = rules.training
    jobs = grid(["dense" if what == "train" else "random"], [0.9], [0])
    (line,) = forecast(jobs, Rehearsal(rules, store, CLEAN, ROBUST, device, seconds=2.0)).lines
    if what == "score":
        minutes = line.score_seconds * TEST / rules.shard / 60
        return f"{arch} 90 % sparse, {TEST:,} images, {ROBUST:.0%} robust: {minutes:.3g} min to score"
    epoch, split = line.train_seconds / (rules.units * EPOCHS), store.testing("", images)
    net, steps = build(arch, info=store.info("")), images // min(recipe.batch, images)
    plain = [steps * plain_step(net, split, rules, torch.device(device), half=half) for half in (False, True)]
    ratios = " and ".join(f"{each:.3g} s ({each / epoch:.2f} times)" for each in plain)
    return f"{arch}, PGD-10, epoch of {images:,}: {epoch:.3g} s; plain loop in float32 and bfloat16: {ratios}"


def _rules(arch: str, images: int) -> Protocol:
    """The training of CIFAR-10 for `arch` on so many images, at a rate for random labels."""
    rules = PROTOCOLS["cifar10-linf"]
    recipe = rules.training.model_copy(update={"epochs": EPOCHS, "validate_every": EPOCHS, "lr": LR})
    sizes = {"train": images, "validation": 16, "test": rules.shard}
    return rules.model_copy(update={"model": arch, "training": recipe, **sizes})


def plain_step(net: nn.Module, split: Split, rules: Protocol, device: torch.device, *, half: bool) -> float:
    """Seconds per step of a plain eager loop: a batch fetched from the CPU, PGD, SGD, a loss read back."""
    radius, times = rules.threat.radius, []
    net, batch = net.to(device), min(rules.training.batch, len(split))
    optimiser = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    images, labels = as_float(split.images), split.labels
    for step in range(STEPS):
        began = time.perf_counter()
        index = torch.arange(step * batch, (step + 1) * batch) % len(labels)
        x, y = images[index].to(device), labels[index].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            net.eval()
            moved = (x + torch.empty_like(x).uniform_(-radius, radius)).clamp(0, 1)
            for _ in range(rules.training.steps):
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(moved.requires_grad_()), y), moved)
                moved = (moved.detach() + 2 / 255 * gradient.sign()).clamp(x - radius, x + radius).clamp(0, 1)
            net.train()
            loss = F.cross_entropy(net(moved), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])
