"""A sparse ResNet-18 on our kernels against stock eager torch: the same net, the same images, alternating in one run.

`python -m tests.benchmarks.test_executor FILE` writes the table of bench/executor/BENCHMARKS.md.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import machine
from bench.executor import explain, fast
from bench.files import write_bytes
from bench.mask import draw, masked
from bench.models import build, prunable

IMAGES, ROUNDS = 64, 3
# (density, gradient) -> how many times faster it is meant to be; a dense net must not lose.
TARGETS = {
    (1.0, False): 0.95, (0.1, False): 6, (0.05, False): 10, (0.01, False): 25,
    (1.0, True): 0.95, (0.1, True): 5, (0.05, True): 8, (0.01, True): 20,
}  # fmt: skip


def sparse(density: float) -> nn.Module:
    """A ResNet-18 whose layers all keep that share of their weights, at random places."""
    net = build("resnet18").eval().requires_grad_(False)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keeps = {name: round(density * weight.numel()) for name, weight in prunable(net).items()}
    net.load_state_dict(masked(net.state_dict(), draw(shapes, keeps, torch.Generator().manual_seed(1))))
    return net


def seconds(net: Callable[[Tensor], Tensor], images: Tensor, gradient: bool) -> float:
    began = time.perf_counter()
    with torch.set_grad_enabled(gradient):
        lent = images.clone().requires_grad_(gradient)
        logits = net(lent)
        if gradient:
            torch.autograd.grad(logits.sum(), lent)
    return time.perf_counter() - began


def measured(density: float, gradient: bool, rounds: int = ROUNDS) -> tuple[float, float]:
    """Medians of the seconds of ours and of the peer's, after one round that warms both up."""
    torch.set_num_threads(2)
    net = sparse(density)
    quick, images = fast(net), torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = [(seconds(quick, images, gradient), seconds(net, images, gradient)) for _ in range(rounds + 1)][1:]
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    return ours, peer


@pytest.mark.parametrize(("density", "gradient"), TARGETS)
def test_resnet18(benchmark: Any, density: float, gradient: bool) -> None:
    """The ratio of the medians."""
    ours, peer = benchmark.pedantic(measured, args=(density, gradient), rounds=1)
    benchmark.extra_info.update(
        ours_s=ours, peer_s=peer, ratio=ours / peer, rounds=ROUNDS, target=f"{1 / TARGETS[density, gradient]:.3f}"
    )


def table() -> str:
    """The figures as Markdown, with what they were measured on."""
    facts = machine.env(torch.device("cpu"))
    busy = os.getloadavg()[0]
    lines = [
        "# How fast a sparse ResNet-18 runs",
        "",
        f"{facts['cpu']}, 2 threads, torch {facts['torch']}, Python {facts['python']}; kernels: {explain()}.",
        f"{IMAGES} images of 32x32, every layer at the same density (random places), ours against stock eager torch on",
        f"the same net, alternating; ratios of medians of {ROUNDS}. Written by",
        "`python -m tests.benchmarks.test_executor bench/executor/BENCHMARKS.md`.",
        "",
        f"Load average when it began: {busy:.1f}. On a busy machine the ratios favour ours: stock torch waits for its",
        "slowest thread in every layer, our threads only at the end.",
        "",
        "| | weights left | ours, images/s | stock, images/s | ratio | goal |",
        "|---|---|---|---|---|---|",
    ]
    for (density, gradient), goal in TARGETS.items():
        ours, peer = measured(density, gradient)
        what = "forward and input gradient" if gradient else "forward"
        lines.append(
            f"| {what} | {density:.0%} | {IMAGES / ours:.0f} | {IMAGES / peer:.0f} | {peer / ours:.2f} | {goal} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_bytes(Path(sys.argv[1]), table().encode())
