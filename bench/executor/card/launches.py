"""A plan's jobs as launches of the kernels, with the tables that these read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunebench.bench.executor.card import kernels
from prunebench.bench.executor.card.arena import Buffers, pitches
from prunebench.bench.executor.card.geometry import Geometry, Pitches
from prunebench.bench.executor.card.lists import pack
from prunebench.bench.executor.card.tiles import Tiles, fit
from prunebench.bench.executor.jobs import OPEN, RELU, Bits, Job, Plan
from prunebench.bench.executor.packing import POOL, QUAD, Pair, Phase

WARPS = 4  # of a program of a pool


@dataclass
class Memory:
    """What a run works on: the plan's buffers, and what is saved for the backward pass, None if nothing is."""

    buffers: list[Tensor]
    saved: Tensor | None
    images: int


class Convolution:
    """A phase of a convolution: every `step`-th pixel of its result."""

    def __init__(
        self,
        plan: Plan,
        job: Job,
        phase: Phase,
        where: Buffers,
        starts: Mapping[Bits, int],
        tiles: Tiles,
        device: torch.device,
    ) -> None:
        source, target = plan.tensors[job.source], plan.tensors[job.target]
        read, out = pitches(source), pitches(target)
        self._job, self._phase, self._where, self._tiles = job, phase, where, tiles
        self._leak = plan.leak
        self._lists = lists = pack(phase, np.array(read[1:]), target.shape[0], tiles)
        holds = np.append(phase.holds, -1)[lists.taps]
        self._holds = _on(holds, device)
        self._starts, self._firsts, self._offsets = (
            _on(each, device) for each in (lists.starts, lists.firsts, lists.offsets)
        )
        self._weights = torch.zeros(len(holds), device=device)
        self._bias = torch.zeros(target.shape[0] + QUAD, device=device)
        moved = (read[0], read[1], phase.stride[0] * read[2], phase.stride[1])
        self._geometry = Geometry(
            self._lists.blocks, target.shape[0], *phase.extent, read=moved, out=_stepped(out, phase.origin, phase.step)
        )
        if job.add >= 0:
            add = pitches(plan.tensors[job.add])
            self._geometry = replace(self._geometry, add=_stepped(add, phase.origin, phase.step))
        if job.bits is not None:
            sign = _stepped(_saved(job.bits, starts), phase.origin, phase.step)
            self._geometry = replace(self._geometry, sign=sign)
        self._tables: dict[int, Tensor] = {}  # by tiles per row of pixels

    def fill(self, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor]) -> None:
        """Write the current weights and biases, by layer; each layer's `weights` end in a 0."""
        layer = self._job.layer
        values = weights[layer] if layer is not None else self._weights.new_tensor([1.0, 0.0])
        self._weights.copy_(values[self._holds])
        if self._job.bias is not None and layer is not None:
            self._bias[:-QUAD] = biases[layer]

    def run(self, memory: Memory) -> None:
        """Launch the kernel."""
        job, lists, images = self._job, self._lists, memory.images
        tile = fit(self._tiles, self._phase.extent, images)
        count, across = tile.grid(self._phase.extent, images)
        table = _table(self._tables, replace(self._geometry, tiles=across), across, self._weights.device)
        source, target = (memory.buffers[self._where.number[each]] for each in (job.source, job.target))
        signs = memory.saved if job.gate != OPEN else None
        kernels.convolve[(count * lists.blocks,)](
            source,
            target,
            memory.buffers[self._where.number[job.add]] if job.add >= 0 else target,
            table if signs is None else signs,
            self._bias,
            self._starts,
            self._firsts,
            self._offsets,
            self._weights,
            table,
            images,
            lists.blocks,
            self._leak,
            LINES=lists.lines,
            PARTS=tile.parts,
            LANES=tile.lanes,
            TILE_IMAGES=tile.images,
            TILE_COLS=tile.cols,
            SHARED=lists.shared,
            UNROLL=lists.unroll,
            GATE=job.gate,
            ADDS=job.add >= 0,
            SAVES=job.gate == RELU and signs is not None,
            num_warps=lists.lines,
        )


class Pooling:
    """Max pooling, or the gradient of its input."""

    def __init__(
        self,
        plan: Plan,
        job: Job,
        where: Buffers,
        starts: Mapping[Bits, int],
        tiles: Tiles,
    ) -> None:
        source, target = plan.tensors[job.source], plan.tensors[job.target]
        self._job, self._where, self._width, self._leak = job, where, tiles.width, plan.leak
        assert job.bits is not None
        self._geometry = Geometry(
            1,
            *target.shape,
            source_rows=source.shape[1],
            source_cols=source.shape[2],
            read=pitches(source),
            out=pitches(target),
            add=pitches(plan.tensors[job.add]) if job.add >= 0 else (0, 0, 0, 0),
            saved=_saved(job.bits, starts),
            sign=(0, 0, 0, 0) if job.sign is None else _saved(job.sign, starts),
        )
        self._tables: dict[int, Tensor] = {}

    def fill(self, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor]) -> None:
        """A pool has no weights."""

    def run(self, memory: Memory) -> None:
        """Launch the kernel."""
        job, shape = self._job, self._geometry
        source, target = (memory.buffers[self._where.number[each]] for each in (job.source, job.target))
        table = _table(self._tables, shape, 1, source.device)
        saved = table if memory.saved is None else memory.saved
        grid = -(-shape.rows * shape.cols * memory.images // self._width), shape.channels
        sizes = {"WIDTH": self._width, "ROW": job.window[0], "COL": job.window[1]}
        sizes |= {"DOWN": job.stride[0], "RIGHT": job.stride[1], "num_warps": WARPS}
        if job.kind == POOL:
            kernels.pool[grid](source, target, saved, table, memory.images, SAVES=memory.saved is not None, **sizes)
            return
        add = memory.buffers[self._where.number[job.add]] if job.add >= 0 else target
        options = {"GATE": job.gate, "ADDS": job.add >= 0, "LEAKS": self._leak > 0}
        kernels.unpool[grid](source, target, add, saved, saved, table, memory.images, self._leak, **options, **sizes)


def _stepped(at: Pitches, origin: Pair, step: Pair) -> Pitches:
    """The pitches of every `step`-th pixel from `origin`."""
    first, channel, row, col = at
    return first + origin[0] * row + origin[1] * col, channel, step[0] * row, step[1] * col


def _saved(bits: Bits, starts: Mapping[Bits, int]) -> Pitches:
    """The pitches of what is saved, a byte for each pixel and image."""
    _, rows, cols = bits.shape
    return starts[bits], rows * cols, cols, 1


def _table(known: dict[int, Tensor], geometry: Geometry, key: int, device: torch.device) -> Tensor:
    if key not in known:
        known[key] = _on(np.array(geometry.numbers(), np.int32), device)
    return known[key]


def _on(values: NDArray[np.int32] | NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
