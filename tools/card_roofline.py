"""How long a sparse ResNet-18 should take on a card by the card's peaks, layer by layer; `--measure` times it on one.

`python -m tools.card_roofline --write docs/card-executor.md` replaces the table of that page.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import fx, nn

from prunebench.bench import executor
from prunebench.bench.channels import Tracer
from prunebench.bench.executor import Fast, fast
from prunebench.bench.executor.card.arena import pitches, pixels
from prunebench.bench.executor.card.lists import pack
from prunebench.bench.executor.card.tiles import TILES, Tiles, fit
from prunebench.bench.executor.jobs import Job, Plan
from prunebench.bench.executor.lower import lower
from prunebench.bench.executor.packing import CONV, LOAD, STORE, Phase
from prunebench.bench.executor.piece import SparsePiece
from prunebench.bench.executor.reader import PROBE, Probe
from prunebench.bench.executor.weights import Pattern
from prunebench.bench.mask import draw, erk, rescaled, uniform
from prunebench.bench.models import build, prunable

# NVIDIA's H200 datasheet (SXM): 67 TFLOP/s in float32, 4.8 TB/s of memory. 132 multiprocessors of 128 lanes: the clock
# follows, and with the 128 bytes per clock that a multiprocessor loads from its first-level cache, that cache's rate.
# The datasheet is silent on the second-level cache; 5.5 TB/s is an assumption.
FLOPS, MEMORY, LANES = 67e12, 4.8e12, 128
FIRST = FLOPS / 2 / LANES * 128  # bytes per second of all multiprocessors
SECOND = 5.5e12
IMAGES, SHAPE = 256, (3, 32, 32)
LEFT = (0.1, 0.05, 0.01)
BEGIN, END = "<!-- roofline: made by tools/card_roofline.py -->", "<!-- end of roofline -->"


@dataclass(frozen=True)
class Work:
    """What one launch does: products, and bytes from the first cache, the second one, and memory."""

    products: float
    first: float
    second: float
    memory: float

    def times(self) -> dict[str, float]:
        """Seconds that each part of the card takes for it at its peak."""
        return {
            "arithmetic": 2 * self.products / FLOPS,
            "first-level cache": self.first / FIRST,
            "second-level cache": self.second / SECOND,
            "memory": self.memory / MEMORY,
        }


def sparse_resnet(left: float, rule: str) -> nn.Module:
    """A ResNet-18 with this share of its weights, at random places: "uniform" or "erk" densities."""
    net = build("resnet18").eval().requires_grad_(False)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keep = round(left * sum(weight.numel() for weight in prunable(net).values()))
    counts = erk(shapes, keep) if rule == "erk" else uniform(shapes, keep)
    net.load_state_dict(rescaled(net.state_dict(), draw(shapes, counts, torch.Generator().manual_seed(0))))
    return net


def works(net: nn.Module, tiles: Tiles, images: int = IMAGES) -> tuple[list[Work], list[Work]]:
    """The launches of the forward pass and of the input gradient, for `images` images, a multiple of 16."""
    quick = fast(net, always=True)
    assert quick.differs(SHAPE)
    segments = [piece.segment for piece in quick.pieces[SHAPE] or () if isinstance(piece, SparsePiece)]
    plans = [lower(segment) for segment in segments]
    forward, backward = (
        [work for plan in side for work in _works(plan, tiles, images)]
        for side in ([each.forward for each in plans], [each.backward for each in plans])
    )
    return forward, backward


def _works(plan: Plan, tiles: Tiles, images: int) -> Iterator[Work]:
    for job in plan.jobs:
        if job.kind == CONV:
            yield from (_convolution(plan, job, phase, tiles, images) for phase in job.phases)
        elif job.kind in (LOAD, STORE):
            yield Work(0, 0, 0, 8 * pixels(plan.tensors[job.target if job.kind == LOAD else job.source]) * images)
        else:
            yield Work(0, 0, 0, 4 * images * (pixels(plan.tensors[job.source]) + pixels(plan.tensors[job.target])))


def _convolution(plan: Plan, job: Job, phase: Phase, tiles: Tiles, images: int) -> Work:
    """A launch for a phase: every program reads its lists, and from the second cache what its first one lacks."""
    source, target = plan.tensors[job.source], plan.tensors[job.target]
    lists = pack(phase, np.array(pitches(source)[1:]), target.shape[0], tiles)
    tile = fit(tiles, phase.extent, images)
    count, _ = tile.grid(phase.extent, images)
    sums = tile.parts * tile.lanes
    entries = len(lists.offsets)  # for all lists, with those that fill up
    window = tile.images * (tile.rows * phase.stride[0] + 2) * (tile.cols * phase.stride[1] + 2)
    fetched = 0
    for block in range(lists.blocks):
        offsets = np.unique(lists.offsets[lists.starts[block] * lists.lines : lists.starts[block + 1] * lists.lines])
        channels = len(np.unique(offsets // pitches(source)[1]))
        fetched += min(len(offsets) * sums, channels * window)
    results = target.shape[0] * phase.extent[0] * phase.extent[1] * images
    read = source.shape[0] * source.shape[1] * source.shape[2] * images if entries else 0
    moved = 4 * read + results * (4 + 4 * (job.add >= 0) + (job.bits is not None))
    weights = 4 * (1 + lists.shared) * entries
    return Work(
        products=count * entries * sums * lists.shared,
        first=count * (4 * entries * sums + 32 * weights),  # a warp fetches 128 bytes for each number it needs
        second=count * (4 * fetched + weights) + moved,
        memory=moved + weights,
    )


def expected(left: float, rule: str, tiles: Tiles = TILES) -> str:
    """The table line of a net: milliseconds for IMAGES images if every launch runs at the peak that limits it."""
    net = sparse_resnet(left, rule)
    sides = works(net, tiles)
    forward, backward = (sum(max(work.times().values()) for work in side) * 1e3 for side in sides)
    limits: dict[str, float] = {}
    for work in itertools.chain(*sides):
        what, seconds = max(work.times().items(), key=lambda item: item[1])
        limits[what] = limits.get(what, 0) + seconds
    products, whole = multiplications(net)
    dense = 2 * 2 * whole * IMAGES / FLOPS * 1e3
    cells = [f"{left:.0%}", rule, f"{products / whole:.1%}", f"{forward:.2f}", f"{forward + backward:.2f}"]
    cells += [f"{dense:.2f}", f"{dense / (forward + backward):.1f}", max(limits, key=lambda what: limits[what])]
    return f"| {' | '.join([*cells, str(sum(map(len, sides)))])} |"


def multiplications(net: nn.Module) -> tuple[int, int]:
    """Multiplications per image by the net's weights, and by all weights."""
    graph = fx.GraphModule(net, Tracer().trace(net))
    Probe(graph).run(torch.zeros(PROBE, *SHAPE))
    return executor.multiplications(graph, Pattern())


def table() -> str:
    """The page's table."""
    heads = ["weights left", "densities", "products left", "forward, ms", "with gradient, ms", "dense at the peak, ms"]
    heads += ["ratio", "mostly limited by", "launches"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    return "\n".join(lines + [expected(left, rule) for left in LEFT for rule in ("uniform", "erk")])


def measure(left: float, rule: str, images: int, turns: int) -> str:
    """A table line of times on this machine's card, each the median of `turns`; the net itself in exact float32 beside.

    Tile sizes are tried one field at a time; the best of each field is kept for the next.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    net = sparse_resnet(left, rule).cuda()
    batch = torch.rand(images, *SHAPE, device="cuda")
    from prunebench.bench.executor.card import run  # imports Triton

    found, best = [f"the net itself: {_timed(net, batch, turns):.2f} ms"], TILES
    for name, choices in (
        ("lines", (8, 16, 32)), ("parts", (2, 4, 8)), ("images", (16, 32, 64)), ("unroll", (2, 4, 8)),
        ("shared_cost", (1.3, 1.8, 1e9)),
    ):  # fmt: skip
        tried = {}
        for value in choices:
            tiles = Tiles(**{**vars(best), name: value})
            with mock.patch.object(run, "TILES", tiles):
                quick = fast(net, always=True)
                if quick.differs(SHAPE):
                    tried[value] = _timed(quick, batch, turns)
            found.append(f"{name} {value}: {tried.get(value, float('nan')):.2f} ms")
        best = Tiles(**{**vars(best), name: min(tried, key=lambda value: tried[value])}) if tried else best
    return f"{left:.0%} {rule}, {images} images, forward and gradient: " + "; ".join(found) + f"; best: {best}"


def _timed(net: nn.Module | Fast, images: torch.Tensor, turns: int) -> float:
    """Milliseconds of a forward pass and its input gradient, by the card's own clock."""
    spent = []
    for turn in range(turns + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        batch = images.clone().requires_grad_()
        begin.record()
        torch.autograd.grad(net(batch).sum(), batch)
        end.record()
        torch.cuda.synchronize()
        spent += [begin.elapsed_time(end)] if turn >= 3 else []
    return sorted(spent)[len(spent) // 2]


def main() -> None:
    """Print or write the table, or measure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", type=Path, metavar="PAGE", help="replace the table of this page")
    options.add_argument("--measure", action="store_true", help="time the kernels on this machine's card")
    options.add_argument("--turns", type=int, default=20)
    chosen = options.parse_args()
    if chosen.measure:
        for left, rule in itertools.product(LEFT, ("uniform", "erk")):
            print(measure(left, rule, IMAGES, chosen.turns), flush=True)
        return
    made = table()
    if chosen.write is None:
        print(made)
        return
    page = chosen.write.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        options.error(f"{chosen.write} has no place for the table: it needs the lines {BEGIN} and {END}.")
    inside = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    chosen.write.write_text(inside.sub(lambda _: f"{BEGIN}\n\n{made}\n\n{END}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
