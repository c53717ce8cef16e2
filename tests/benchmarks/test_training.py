"""Adversarial fine-tuning under a fixed mask, a step of the trainer against the same step in stock torch, alternating.

`python -m tests.benchmarks.test_training` prints the table, at one thread in processor time and at two on the clock.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunebench.bench.executor import fast
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import draw, masked
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import load

SHAPES = {"digits-cnn": (1, 8, 8), "mnist-cnn": (1, 28, 28), "resnet18": (3, 32, 32)}
IMAGES = {"digits-cnn": 128, "mnist-cnn": 128, "resnet18": 32}
ROUNDS = 3
# (net, share of weights left) -> how many times faster it is meant to be; a PGD-10 step with its optimiser.
TARGETS = {
    ("resnet18", 0.1): 3,
    ("resnet18", 0.05): 4,
    ("resnet18", 0.01): 5,
    ("mnist-cnn", 0.1): 3,
    ("mnist-cnn", 0.05): 4,
    ("digits-cnn", 0.1): 1,
    ("digits-cnn", 0.05): 1,
    ("resnet18", 1.0): 1,
    ("mnist-cnn", 1.0): 1.3,
}


class Stock(Trainer):
    """The same loop on the net as it is, in torch's usual order of memory."""

    def __init__(self, model: nn.Module, *rest: Any) -> None:
        super().__init__(model, *rest)
        self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.quick = None

    def logits(self, images: Tensor, model: Any = None) -> Tensor:
        return (model or self.model)(images)  # type: ignore[no-any-return]


def alternating(ours: Callable[[], None], peer: Callable[[], None], threads: int) -> tuple[float, float]:
    """Medians of the seconds of both, after a round that warms them up: the processor's on one thread."""
    clock = time.process_time if threads == 1 else time.perf_counter

    def seconds(work: Callable[[], None]) -> float:
        began = clock()
        work()
        return clock() - began

    torch.set_num_threads(threads)
    pairs = [(seconds(ours), seconds(peer)) for _ in range(ROUNDS + 1)][1:]
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    return first, second


def step(arch: str, density: float, threads: int = 1) -> tuple[float, float]:
    """Seconds of ours and of the peer's for a training step of PGD-10."""
    rules, net = load("digits-linf"), build(arch)
    recipe = rules.training.model_copy(update={"objective": "pgd", "steps": 10})
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keeps = {name: round(density * weight.numel()) for name, weight in prunable(net).items()}
    masks = draw(shapes, keeps, torch.Generator().manual_seed(1)) if density < 1 else {}
    net.load_state_dict(masked(net.state_dict(), masks))
    plan, cpu = TrainingPlan(recipe, rules.threat, 1), torch.device("cpu")
    images = torch.rand(IMAGES[arch], *SHAPES[arch], generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(images)) % 10
    sides = [kind(copy.deepcopy(net), plan, masks, cpu) for kind in (Trainer, Stock)]
    noises = [torch.Generator().manual_seed(2) for _ in sides]
    ours, peer = (
        (lambda side=side, noise=noise: (side.model.train(), side.step(images, labels, 0.5, noise)))
        for side, noise in zip(sides, noises, strict=True)
    )
    return alternating(ours, peer, threads)


@pytest.mark.parametrize(("arch", "density"), TARGETS)
def test_fine_tuning(benchmark: Any, arch: str, density: float) -> None:
    """The ratio of the medians of a step."""
    ours, peer = benchmark.pedantic(step, args=(arch, density), rounds=1)
    target = f"{1 / TARGETS[arch, density]:.3f}"
    benchmark.extra_info.update(ours_s=ours, peer_s=peer, ratio=ours / peer, rounds=ROUNDS, target=target)


def attack(arch: str, threads: int = 1) -> tuple[float, float]:
    """Seconds of ours and of the peer's for a forward pass and an input gradient of a dense net."""
    net = build(arch).eval()
    images = torch.rand(IMAGES[arch], *SHAPES[arch], generator=torch.Generator().manual_seed(0))

    def gradient(model: Callable[[Tensor], Tensor]) -> None:
        lent = images.clone().requires_grad_()
        torch.autograd.grad(model(lent).sum(), lent)

    quick = fast(net)
    return alternating(lambda: gradient(quick), lambda: gradient(net), threads)


@pytest.mark.parametrize("arch", SHAPES)
def test_dense(benchmark: Any, arch: str) -> None:
    """The ratio of the medians of a gradient."""
    ours, peer = benchmark.pedantic(attack, args=(arch,), rounds=1)
    benchmark.extra_info.update(ours_s=ours, peer_s=peer, ratio=ours / peer, rounds=ROUNDS, target=f"{1 / 1.3:.3f}")


if __name__ == "__main__":
    print("| | weights left | goal | 1 thread, processor | 2 threads, clock |\n|---|---|---|---|---|")
    for (arch, density), goal in TARGETS.items():
        one, two = (peer / ours for ours, peer in (step(arch, density, threads) for threads in (1, 2)))
        print(f"| {arch}, a step of training | {density:.0%} | {goal} | {one:.2f} | {two:.2f} |", flush=True)
    for arch in SHAPES:
        one, two = (peer / ours for ours, peer in (attack(arch, threads) for threads in (1, 2)))
        print(f"| {arch}, a gradient | 100% | 1.3 | {one:.2f} | {two:.2f} |", flush=True)
