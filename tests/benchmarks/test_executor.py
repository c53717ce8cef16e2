"""A sparse ResNet-18 on our kernels against stock eager torch and against torch's own sparse matrices.

The same net, the same images, alternating in one run. `python -m tests.benchmarks.test_executor FILE` writes the tables
of bench/executor/BENCHMARKS.md.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.bench import machine
from prunebench.bench.executor import explain, fast
from prunebench.bench.files import write_bytes
from prunebench.bench.mask import draw, erk, masked
from prunebench.bench.models import build, prunable

ROUNDS = 3
TURN = 0.2  # seconds of calls before it is the other side's turn
# (density, gradient) -> how many times faster it is meant to be; a dense net must not lose.
TARGETS = {
    (1.0, False): 0.95,
    (0.1, False): 6,
    (0.05, False): 10,
    (0.01, False): 25,
    (1.0, True): 0.95,
    (0.1, True): 5,
    (0.05, True): 8,
    (0.01, True): 20,
}
MASKS = ("uniform", "ERK")
LAYERS = {64: 32, 128: 16, 256: 8, 512: 4}  # channels of a 3x3 layer, and the rows and columns that it sees
SPARSE = (0.1, 0.05, 0.01)
DENSITIES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
BATCHES = (1, 4, 16, 17, 64, 256)

MARK = "\n<!-- The tables above are written anew by their command; what follows stays. -->\n"

Net = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Clock:
    """How time is taken: on so many threads, for so many images."""

    name: str
    read: Callable[[], float]
    threads: int
    images: int


WALL = Clock("wall time, 2 threads", time.perf_counter, 2, 64)
WORK = Clock("processor time, 1 thread", time.process_time, 1, 16)


def sparse(density: float, kind: str = "uniform") -> nn.Module:
    """A ResNet-18 that keeps that share of its weights, at random places, in every layer alike or by ERK."""
    net = build("resnet18").eval().requires_grad_(False)
    sizes = {name: weight.numel() for name, weight in prunable(net).items()}
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keeps = {name: round(density * size) for name, size in sizes.items()}
    if kind == "ERK":
        keeps = erk(shapes, round(density * sum(sizes.values())))
    net.load_state_dict(masked(net.state_dict(), draw(shapes, keeps, torch.Generator().manual_seed(1))))
    return net


def layer(channels: int, density: float) -> nn.Module:
    """A net of one 3x3 convolution."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    conv.weight.mul_(torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(1)) < density)
    return nn.Sequential(conv).eval()


class Unfolded(nn.Module):
    """A convolution as torch can do it with a sparse matrix: `F.unfold`, then CSR times dense."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is None and conv.groups == 1
        self.conv = conv
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
            self.matrix = conv.weight.flatten(1).to_sparse_csr()

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride, padding = self.conv.kernel_size, self.conv.stride, self.conv.padding
        rows, cols = ((images.shape[2 + k] + 2 * padding[k] - kernel[k]) // stride[k] + 1 for k in (0, 1))
        columns = F.unfold(images, kernel, padding=padding, stride=stride).transpose(0, 1).flatten(1)
        return (self.matrix @ columns).view(-1, len(images), rows, cols).transpose(0, 1)


def unfolded(net: nn.Module) -> nn.Module:
    """The net with all its convolutions as sparse matrices."""
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            net.set_submodule(name, Unfolded(module))
    return net


def medians(nets: Iterable[Net], images: Tensor, clock: Clock, *, gradient: bool = False) -> list[float]:
    """Seconds that each net takes for a call, alternating."""
    nets, before = list(nets), torch.get_num_threads()
    torch.set_num_threads(clock.threads)
    try:
        rounds = [[_seconds(net, images, clock, gradient) for net in nets] for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(before)
    return [statistics.median(side) for side in zip(*rounds, strict=True)]


def _seconds(net: Net, images: Tensor, clock: Clock, gradient: bool) -> float:
    """Of one of the calls of a turn; the first, which finds the caches full of the other side's things, is not counted.

    An attack calls one net thousands of times in a row.
    """
    _call(net, images, gradient)
    calls, began = 0, clock.read()
    while not calls or clock.read() - began < TURN:
        _call(net, images, gradient)
        calls += 1
    return (clock.read() - began) / calls


def _call(net: Net, images: Tensor, gradient: bool) -> None:
    with torch.set_grad_enabled(gradient):
        lent = images.clone().requires_grad_(gradient)
        logits = net(lent)
        if gradient:
            torch.autograd.grad(logits.sum(), lent)


def pictures(images: int, channels: int = 3, size: int = 32) -> Tensor:
    """The same images each time."""
    return torch.rand(images, channels, size, size, generator=torch.Generator().manual_seed(0))


# In `make bench`


@pytest.mark.parametrize(("density", "gradient"), TARGETS)
def test_resnet18(benchmark: Any, density: float, gradient: bool) -> None:
    """The ratio of the medians."""
    net, images = sparse(density), pictures(WALL.images)
    _note(benchmark, [fast(net), net], images, 1 / TARGETS[density, gradient], gradient=gradient)


@pytest.mark.parametrize("density", SPARSE)
@pytest.mark.parametrize("channels", LAYERS)
def test_a_layer_against_a_sparse_matrix(benchmark: Any, channels: int, density: float) -> None:
    """Ours must not lose."""
    net, images = layer(channels, density), pictures(WALL.images, channels, LAYERS[channels])
    _note(benchmark, [fast(net), unfolded(net)], images, 1.0)


def _note(benchmark: Any, nets: list[Net], images: Tensor, target: float, *, gradient: bool = False) -> None:
    ours, peer = benchmark.pedantic(medians, args=(nets, images, WALL), kwargs={"gradient": gradient}, rounds=1)
    benchmark.extra_info.update(ours_s=ours, peer_s=peer, ratio=ours / peer, rounds=ROUNDS, target=f"{target:.3f}")


# In BENCHMARKS.md


def tables() -> str:
    """The figures as Markdown, with what they were measured on."""
    facts, busy = machine.env(torch.device("cpu")), os.getloadavg()[0]
    return f"""# How fast a sparse ResNet-18 runs

{facts["cpu"]}, torch {facts["torch"]}, Python {facts["python"]}; kernels: {explain()}. Written in minutes by
`python -m tests.benchmarks.test_executor bench/executor/BENCHMARKS.md`.

Images of 32x32; ours against the peer on the same net, alternating: {WALL.name}, for {WALL.images} images, and
{WORK.name} (which waiting does not count in), for {WORK.images}. Medians of {ROUNDS} turns: a call that is not
counted, since an attack calls one net thousands of times in a row, then calls for {TURN} s. Weights are at random
places: in every layer the same share of them (uniform), or by ERK, which leaves small layers a larger share, and so
more multiplications.

Load average when it began: {busy:.1f}.

## Against stock eager torch: {WALL.name}

{_against_stock(WALL)}

## Against stock eager torch: {WORK.name}

{_against_stock(WORK)}

## Against `F.unfold` and torch's sparse CSR matrices: forward, ms an image

A layer is a 3x3 convolution with as many channels out as in. Stock: the same net dense.

{_against_matrices()}

## How the cost grows with density: forward on the kernels, ms an image

{_by_density()}

## How the cost grows with the number of images: forward, 5% of the weights left, ms an image

The kernels take 16 images at a time: fewer cost as much as 16.

{_by_images()}
"""


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _against_stock(clock: Clock) -> str:
    images, rows = pictures(clock.images), []
    for (density, gradient), goal in TARGETS.items():
        row = ["forward and input gradient" if gradient else "forward", f"{density:.0%}"]
        for kind in MASKS if density < 1 else MASKS[:1]:
            net = sparse(density, kind)
            ours, peer = medians([fast(net), net], images, clock, gradient=gradient)
            row += [f"{len(images) / ours:.0f}", f"{len(images) / peer:.0f}", f"{peer / ours:.2f}"]
        rows.append([*row, *[""] * (8 - len(row)), f"{goal}"])
    head = [f"{kind}: {what}" for kind in MASKS for what in ("ours, images/s", "stock, images/s", "ratio")]
    return _markdown(["", "weights left", *head, "goal"], rows)


def _against_matrices() -> str:
    rows = []
    for density in SPARSE:
        nets = {
            f"{channels} channels, {size}x{size}": (layer(channels, density), channels, size)
            for channels, size in LAYERS.items()
        }
        nets |= {f"ResNet-18, {kind}": (sparse(density, kind), 3, 32) for kind in MASKS}
        for name, (net, channels, size) in nets.items():
            row = [name, f"{density:.0%}"]
            for clock in (WALL, WORK):
                images = pictures(clock.images, channels, size)
                ours, matrices, stock = medians([fast(net), unfolded(net), net], images, clock)
                row += [*(_milliseconds(x, images) for x in (ours, matrices, stock)), f"{matrices / ours:.1f}"]
            rows.append(row)
    what = ("ours", "CSR", "stock", "CSR to ours")
    return _markdown(["", "weights left", *(f"{clock.name}: {x}" for clock in (WALL, WORK) for x in what)], rows)


def _by_density() -> str:
    rows = []
    for density in DENSITIES:
        row = [f"{density:.0%}"]
        for clock in (WALL, WORK):
            images = pictures(clock.images)
            nets = [sparse(density, kind) for kind in MASKS]
            times = medians([*(fast(net, always=True) for net in nets), nets[0]], images, clock)
            row += [_milliseconds(x, images) for x in times]
        rows.append(row)
    what = (*MASKS, "stock")
    return _markdown(["weights left", *(f"{clock.name}: {x}" for clock in (WALL, WORK) for x in what)], rows)


def _by_images() -> str:
    nets = [sparse(0.05, kind) for kind in MASKS]
    quick, rows = [fast(net) for net in nets], []
    for number in BATCHES:
        images = pictures(number)
        times = [medians([*quick, nets[0]], images, clock) for clock in (WALL, WORK)]
        rows.append([str(number), *(_milliseconds(x, images) for side in times for x in side)])
    what = (*MASKS, "stock")
    return _markdown(["images", *(f"{clock.name}: {x}" for clock in (WALL, WORK) for x in what)], rows)


def _milliseconds(seconds: float, images: Tensor) -> str:
    return f"{1000 * seconds / len(images):.3f}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    kept = target.read_text().partition(MARK)[2] if target.exists() else ""
    write_bytes(target, f"{tables()}{MARK}{kept}".encode())
