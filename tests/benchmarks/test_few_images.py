"""Few images on the kernels, before threads shared them and targets were attacked together, and after.

The same net and images, alternating in one run. `python -m tests.benchmarks.test_few_images` prints the table of calls
in bench/executor/BENCHMARKS.md, on two threads; `... whole 0.99 1 1 2` that of AutoAttack, at this sparsity, on so many
threads, for so many images.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from prunebench.bench.executor import Fast, fast, native
from prunebench.bench.protocol import Threat
from tests.benchmarks.test_autoattack import CASES, scenes
from tests.benchmarks.test_autoattack import sparse as calibrated
from tests.benchmarks.test_executor import MASKS, SPARSE, pictures, sparse
from tests.benchmarks.test_executor import _call as call
from tools.verdicts import ours

FEW = (1, 4, 8, 16)
THREADS, ROUNDS = 2, 8
NEVER = 1 << 60  # no program has so much to do that threads would share it


@contextmanager
def patched(owner: Any, **values: Any) -> Iterator[None]:
    """`owner` with other attributes for a while."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def as_before() -> Iterator[None]:
    """Threads of nets made meanwhile never share images, and APGD attacks one target after the other."""
    with patched(native, ENOUGH=NEVER), patched(Fast, lanes=lambda self, shape: 1):
        yield


def seconds(density: float, kind: str, images: int, gradient: bool) -> list[float]:
    """Of the fastest call: before, after, and in stock torch. In turn, two calls each after one that does not count."""
    net, batch = sparse(density, kind), pictures(images)
    before, after = fast(net), fast(net)
    with as_before():
        before(batch)
    torch.set_num_threads(THREADS)
    found = [math.inf] * 3
    for _ in range(ROUNDS):
        for number, side in enumerate((before, after, net)):
            call(side, batch, gradient)
            for _ in range(2):
                begun = time.perf_counter()
                call(side, batch, gradient)
                found[number] = min(found[number], time.perf_counter() - begun)
    return found


@pytest.mark.parametrize("kind", MASKS)
def test_sixteen_images_on_two_threads(benchmark: Any, kind: str) -> None:
    """Against stock torch, at 5 %, the fastest calls."""
    _, after, stock = benchmark.pedantic(seconds, args=(0.05, kind, 16, False), rounds=1)
    benchmark.extra_info.update(ours_s=after, peer_s=stock, ratio=after / stock, rounds=ROUNDS, target="1.000")


def calls() -> None:
    """Print the milliseconds of a call, line by line."""
    print("| | masks | weights left | images | before, ms | after, ms | stock, ms | before to after | stock to after |")
    print("|---|---|---|---|---|---|---|---|---|")
    sizes = [(kind, 0.05, images) for kind in MASKS for images in FEW[:-1]]
    sizes += [(kind, density, FEW[-1]) for kind in MASKS for density in SPARSE]
    for kind, density, images in sizes:
        for gradient in (False, True):
            before, after, stock = (1000 * each for each in seconds(density, kind, images, gradient))
            what = "forward and gradient" if gradient else "forward"
            print(
                f"| {what} | {kind} | {density:.0%} | {images} | {before:.1f} | {after:.1f} | {stock:.1f} | "
                f"{before / after:.2f} | {stock / after:.2f} |",
                flush=True,
            )


def whole(density: str, threads: str, *counts: str) -> None:
    """Print the seconds of our whole AutoAttack on a ResNet-18 for so many images; on 1 thread, processor time."""
    print("| weights left | images, survivors | before, s | after, s | before to after |\n|---|---|---|---|---|")
    case, clock = CASES[f"resnet18-{density}"], time.process_time if threads == "1" else time.perf_counter
    torch.set_num_threads(int(threads))
    net = calibrated(case.density or 0.0)
    for count in map(int, counts):
        images = scenes(count, 100)
        with torch.no_grad():
            labels = net(images).argmax(1)
        taken, standing = [], []
        for former in (True, False):
            begun = clock()
            with as_before() if former else nullcontext():
                standing.append(ours(net, images, labels, Threat(norm="Linf", eps=case.eps), 0))
            taken.append(clock() - begun)
        assert torch.equal(*standing)
        before, after = taken
        stand = int(standing[0].sum())
        print(
            f"| {case.density:.0%} | {count}, {stand} | {before:.1f} | {after:.1f} | {before / after:.2f} |", flush=True
        )


if __name__ == "__main__":
    whole(*sys.argv[2:]) if sys.argv[1:2] == ["whole"] else calls()
