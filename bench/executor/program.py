"""A program for the kernels: tensors in an arena, steps over them, and the memory that they need."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor.native import PITCHES, Step

GROUP = 16  # images that lie side by side
LOAD, STORE, FRAME, CONV, DENSE, POOL, UNPOOL = range(7)
OPEN, RELU, MASK = range(3)
PIXEL, FLAT, SQUARE = range(3)  # tiles of 1 x 1, 1 x 8 and 2 x 4 output pixels
QUAD = 4  # output channels that share what they read
SIGNS = 4  # bytes that hold the signs of a pixel's images
# Processor cycles (AMD Zen 5, 16 floats wide) that a pixel costs: for a weight whose inputs lie in the second cache, or
# in the first; for a sum that is put down and taken up again; for a weight of four channels (2.5 where images are
# large, 4 where their rows are shorter than a tile).
FAR, NEAR, PAUSE, FOUR = 1.3, 0.8, 2.6, 2.8
WINDOW = 40 * 1024  # bytes of input that stay in the first cache

Pair = tuple[int, int]
Entries = np.dtype([("offset", np.int32), ("weight", np.float32)])
Quads = np.dtype([("offset", np.int32), ("weight", np.float32, QUAD)])
_ONE = np.array([1, 0], np.float32)  # the weight of a copy, and the zero after it


@dataclass
class Tensor:
    """A tensor of the program: channels x rows x cols x 16 images with a frame of zeros `frame` wide (rows, cols)."""

    shape: tuple[int, int, int]
    frame: Pair = (0, 0)
    offset: int = -1  # of its frame's corner, in floats

    @property
    def row(self) -> int:
        return (self.shape[2] + 2 * self.frame[1]) * GROUP

    @property
    def channel(self) -> int:
        return (self.shape[1] + 2 * self.frame[0]) * self.row

    @property
    def size(self) -> int:
        return self.shape[0] * self.channel

    def at(self, row: int = 0, col: int = 0) -> int:
        """Where the pixel of the first channel lies."""
        return self.offset + (row + self.frame[0]) * self.row + (col + self.frame[1]) * GROUP


@dataclass(frozen=True)
class Bits:
    """What the forward pass saves for the backward pass: `pixel` bytes for each pixel of a tensor of this shape."""

    shape: tuple[int, int, int]
    offset: int  # bytes in the area of a group
    pixel: int  # SIGNS of a gate; a byte an image for the places of a pool

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * self.pixel

    def pitches(self) -> tuple[int, int, int]:
        """Bytes from one channel, row and column to the next."""
        return self.shape[1] * self.shape[2] * self.pixel, self.shape[2] * self.pixel, self.pixel


@dataclass(frozen=True)
class Phase:
    """A convolution onto every `step`-th pixel from `origin`: rows x cols of them, read `stride` pixels apart.

    `taps`: one row a weight: output channel, input channel, row and column of what the first pixel reads; `holds`:
    which of the layer's weights it is.
    """

    origin: Pair
    step: Pair
    stride: Pair
    extent: Pair
    taps: NDArray[np.int64]
    holds: NDArray[np.int64]


@dataclass
class Job:
    """Something that makes the tensor `target` out of `source` and `add`, by their numbers."""

    kind: int
    source: int = -1
    target: int = -1
    add: int = -1
    gate: int = OPEN
    bits: Bits | None = None  # of the gate; POOL, UNPOOL: of the places
    sign: Bits | None = None  # UNPOOL: of the gate
    layer: int | None = None  # whose weights the phases hold; None: all of them are 1
    phases: list[Phase] = field(default_factory=list)
    bias: NDArray[np.float32] | None = None
    window: Pair = (1, 1)
    stride: Pair = (1, 1)
    port: int = 0
    affine: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None  # mean and spread of a channel


class Program:
    """Jobs, then the steps that they become, then their weights, as often as these change.

    `tensors` and `jobs` are filled first; `finish` chooses frames, places and kernels; `fill` writes weights. `arena`:
    floats that a thread needs.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.jobs: list[Job] = []
        self.arena = 0
        self._alive: list[Any] = []  # what the steps point into
        self._steps: list[Step] = []
        self._slack = 0  # floats past the last tensor that may be read
        # What `fill` writes: the weights of a step and which of its layer's each is; biases. None: a layer of ones.
        self._weights: list[tuple[NDArray[np.float32], NDArray[np.int64], int | None]] = []
        self._biases: list[tuple[NDArray[np.float32], int | None]] = []

    def tensor(self, shape: tuple[int, int, int]) -> int:
        """The number of a new tensor."""
        self.tensors.append(Tensor(shape))
        return len(self.tensors) - 1

    def finish(self) -> None:
        """Make the steps."""
        for job in self.jobs:
            for phase in job.phases:
                self._widen(self.tensors[job.source], phase)
        self._place()
        for job in self.jobs:
            self._emit(job)
        self.arena += self._slack
        self.steps = (Step * len(self._steps))(*self._steps)

    def fill(self, weights: Mapping[int, NDArray[np.float32]], biases: Mapping[int, NDArray[np.float32]]) -> None:
        """Write into the steps what the layers have now, by their numbers; the last of a layer's `weights` is a 0."""
        for places, holds, layer in self._weights:
            places[...] = (_ONE if layer is None else weights[layer])[holds]
        for bias, layer in self._biases:
            if layer is not None:
                bias[...] = biases[layer]

    def _widen(self, tensor: Tensor, phase: Phase) -> None:
        """Give `tensor` the frame that `phase` reads into."""
        frame = []
        for axis in (0, 1):
            taps, least = phase.taps[:, 2 + axis], tensor.frame[axis]
            if len(taps):
                last = int(taps.max()) + (phase.extent[axis] - 1) * phase.stride[axis]
                least = max(least, -int(taps.min()), last - tensor.shape[1 + axis] + 1)
            frame.append(least)
        tensor.frame = frame[0], frame[1]

    def _place(self) -> None:
        """Give every tensor its place in the arena; those that are not alive together may share one."""
        last: dict[int, int] = {}
        for number, job in enumerate(self.jobs):
            last |= {tensor: number for tensor in (job.source, job.add, job.target) if tensor >= 0}
        taken: list[tuple[int, int, int]] = []  # begin, end, tensor
        placed: set[int] = set()
        for number, job in enumerate(self.jobs):
            if job.target >= 0 and job.target not in placed:
                target, placed = self.tensors[job.target], placed | {job.target}
                if self._in_place(job, last[job.add] == number if job.add >= 0 else False):
                    target.offset = self.tensors[job.add].offset
                    taken = [(a, b, job.target if t == job.add else t) for a, b, t in taken]
                else:
                    begin = 0
                    for a, b, _ in sorted(taken):
                        if begin + target.size <= a:
                            break
                        begin = max(begin, b)
                    target.offset = begin
                    taken.append((begin, begin + target.size, job.target))
                    self.arena = max(self.arena, begin + target.size)
            taken = [place for place in taken if last[place[2]] > number]

    def _in_place(self, job: Job, dies: bool) -> bool:
        """Whether `job` may write where it reads what it adds: pixel for pixel, nobody else reads it later."""
        if not dies or job.kind not in (CONV, DENSE) or job.add == job.source:
            return False
        add, target = self.tensors[job.add], self.tensors[job.target]
        return add.shape == target.shape and add.frame == target.frame

    def _emit(self, job: Job) -> None:
        if job.kind == LOAD:
            self._frame(job)
            self._append(self._step(job, tensor=self.tensors[job.target]))
        elif job.kind == STORE:
            self._append(self._step(job, tensor=self.tensors[job.source]))
        elif job.kind == CONV:
            if job.add < 0 or self.tensors[job.add].offset != self.tensors[job.target].offset:
                self._frame(job)
            for phase in job.phases:
                self._convolve(job, phase)
        else:
            self._frame(job)
            self._pool(job)

    def _append(self, step: Step) -> None:
        self._steps.append(step)

    def _step(self, job: Job, tensor: Tensor) -> Step:
        step = Step(kind=job.kind, gate=job.gate, port=job.port, add=-1, saved=-1)
        step.channels, step.rows, step.cols = tensor.shape
        if job.affine is not None:
            step.mean, step.std = (self._address(values) for values in job.affine)
        if job.source >= 0:
            source = self.tensors[job.source]
            _set(step, "in", source.at(), source.channel, source.row, GROUP)
        if job.target >= 0:
            target = self.tensors[job.target]
            _set(step, "out", target.at(), target.channel, target.row, GROUP)
        if job.add >= 0:
            add = self.tensors[job.add]
            _set(step, "add", add.at(), add.channel, add.row, GROUP)
        return step

    def _frame(self, job: Job) -> None:
        tensor = self.tensors[job.target]
        if tensor.frame != (0, 0):
            step = self._step(Job(FRAME, target=job.target), tensor)
            step.window_rows, step.window_cols = tensor.frame
            self._append(step)

    def _pool(self, job: Job) -> None:
        unpool = job.kind == UNPOOL
        source, target = self.tensors[job.source], self.tensors[job.target]
        step = self._step(job, tensor=source if unpool else target)
        moved = target if unpool else source  # the larger side
        step.window_rows, step.window_cols = job.window
        if unpool:
            step.window_row, step.window_col = job.stride[0] * moved.row, job.stride[1] * GROUP
            step.wide_rows, step.wide_cols = moved.shape[1:]
            if job.sign is not None:
                _set(step, "sign", job.sign.offset, *job.sign.pitches())
        else:
            step.window_row, step.window_col = moved.row, GROUP
            step.in_row, step.in_col = job.stride[0] * moved.row, job.stride[1] * GROUP
        if job.bits is not None:
            _set(step, "saved", job.bits.offset, *job.bits.pitches())
        self._append(step)

    def _convolve(self, job: Job, phase: Phase) -> None:
        source, target = self.tensors[job.source], self.tensors[job.target]
        (y, x), (down, right) = phase.origin, phase.step
        step = self._step(job, tensor=target)
        step.rows, step.cols = phase.extent
        if not step.rows or not step.cols:
            return
        _set(step, "in", source.at(), source.channel, phase.stride[0] * source.row, phase.stride[1] * GROUP)
        _set(step, "out", target.at(y, x), target.channel, down * target.row, right * GROUP)
        if job.add >= 0:
            add = self.tensors[job.add]
            _set(step, "add", add.at(y, x), add.channel, down * add.row, right * GROUP)
        if job.bits is not None:
            channel, row, col = job.bits.pitches()
            _set(step, "saved", job.bits.offset + y * row + x * col, channel, down * row, right * col)
        if job.bias is not None:
            step.bias = self._address(job.bias)
            self._biases.append((job.bias, job.layer))
        packed = pack(phase, np.array([source.channel, source.row, GROUP]), target.shape[0])
        step.kind, step.tile, step.blocks = packed.kind, packed.tile, packed.blocks
        step.starts, step.entries = self._address(packed.starts), self._address(packed.entries)
        self._weights.append((packed.entries["weight"], np.append(phase.holds, -1)[packed.taps], job.layer))
        # A tile may read seven columns, or a row and three columns, past the last output.
        self._slack = max(self._slack, step.in_row + 7 * step.in_col)
        self._append(step)

    def _address(self, values: NDArray[Any]) -> int:
        values = np.ascontiguousarray(values)
        self._alive.append(values)
        return values.ctypes.data


@dataclass(frozen=True)
class Packed:
    """A phase as a kernel reads it: fields of Step by their names, the weights in `entries` still to come.

    `taps`: for each place of `entries["weight"]` the tap whose weight it holds, -1 where there is none.
    """

    kind: int
    tile: int
    blocks: int
    starts: NDArray[np.int32]
    entries: NDArray[Any]
    taps: NDArray[np.int64]


def pack(phase: Phase, pitches: NDArray[np.int64], channels: int) -> Packed:
    """A phase for the kernel that is cheaper; `pitches`: floats from one input channel, row and column to the next.

    Raises PrunebenchError where the kernels cannot count that far.
    """
    outputs, offsets = phase.taps[:, 0], phase.taps[:, 1:] @ pitches
    low = int(offsets.min(initial=0))
    span = int(offsets.max(initial=0)) - low + 1
    if span > np.iinfo(np.int32).max:
        raise PrunebenchError(
            f"The images are too large for the sparse kernels: weights of a layer read {span} floats apart, and "
            f"{np.iinfo(np.int32).max} is the most; call the net itself."
        )
    keys = outputs // QUAD * span + offsets - low
    shared = np.unique(keys)
    tile, waste = _tile(phase)
    block, blocks, cost = _blocks(phase, tile, channels)
    if FOUR * len(shared) < cost * waste:
        quads = np.zeros(len(shared), Quads)
        quads["offset"] = shared % span + low
        taps = np.full((len(shared), QUAD), -1)
        taps[np.searchsorted(shared, keys), outputs % QUAD] = np.arange(len(outputs))
        starts = np.searchsorted(shared // span, np.arange(-(-channels // QUAD) + 1)).astype(np.int32)
        return Packed(DENSE, PIXEL, 1, starts, quads, taps)
    sums = phase.taps[:, 1] // block * channels + outputs
    taps = np.argsort(sums * span + offsets - low)
    entries = np.zeros(len(taps), Entries)
    entries["offset"] = offsets[taps]
    starts = np.append(0, np.bincount(sums, minlength=blocks * channels).cumsum()).astype(np.int32)
    return Packed(CONV, tile, blocks, starts, entries, taps)


def _tile(phase: Phase) -> tuple[int, float]:
    """The tile that covers the result with the fewest pixels beyond it, and how many there are to one of the result.

    A pixel by itself costs as much as three of a tile.
    """
    rows, cols = phase.extent
    pixels = {FLAT: rows * -(-cols // 8) * 8, SQUARE: -(-rows // 2) * 2 * -(-cols // 4) * 4}
    least = min(pixels, key=lambda tile: pixels[tile])
    if 3 * rows * cols < pixels[least] or phase.stride[1] > 2:
        return PIXEL, 3.0
    return least, pixels[least] / (rows * cols)


def _blocks(phase: Phase, tile: int, channels: int) -> tuple[int, int, float]:
    """Input channels in a block, how many blocks, what their weights cost: one block where more of them do not pay."""
    weights, inputs = len(phase.taps), int(phase.taps[:, 1].max(initial=0)) + 1
    if tile == PIXEL or not weights:
        return inputs, 1, NEAR * weights
    rows, cols = (
        int(np.ptp(phase.taps[:, 2 + axis])) + 1 + (size - 1) * phase.stride[axis]
        for axis, size in enumerate((1, 8) if tile == FLAT else (2, 4))
    )
    block = max(1, WINDOW // (rows * cols * GROUP * 4))
    blocks = -(-inputs // block)
    near, far = NEAR * weights + PAUSE * channels * (blocks - 1), FAR * weights
    return (block, blocks, near) if blocks == 1 or near < far else (inputs, 1, far)


def _set(step: Step, name: str, offset: int, channel: int, row: int, col: int) -> None:
    for key, value in zip(PITCHES, (offset, channel, row, col), strict=True):
        setattr(step, f"{name}{key}", value)


def pointers(addresses: list[int]) -> Any:
    """An array of pointers, as the kernels take them."""
    return (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
