"""A segment's work in order: tensors, and the jobs that compute them. Both processors' programs are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prunebench.bench.executor.packing import GROUP, Pair, Phase

OPEN, RELU, MASK, LEAK = range(4)
SIGNS = 4  # bytes for the signs of a pixel's images


@dataclass
class Tensor:
    """A tensor of the program: channels x rows x cols x 16 images, in a frame of zeros `frame` wide (rows, cols)."""

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
        """The offset of this pixel in the first channel."""
        return self.offset + (row + self.frame[0]) * self.row + (col + self.frame[1]) * GROUP


@dataclass(frozen=True)
class Bits:
    """What the forward pass saves for the backward pass: `pixel` bytes per pixel of a tensor of this shape."""

    shape: tuple[int, int, int]
    offset: int  # in bytes, within the area of a group
    pixel: int  # SIGNS for a gate; one byte per image for the positions of a pool's maxima

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * self.pixel

    def pitches(self) -> tuple[int, int, int]:
        """Bytes from one channel, row and column to the next."""
        return self.shape[1] * self.shape[2] * self.pixel, self.shape[2] * self.pixel, self.pixel


@dataclass
class Job:
    """Computes the tensor `target` from `source` and `add`, all given by number."""

    kind: int
    source: int = -1
    target: int = -1
    add: int = -1
    gate: int = OPEN
    bits: Bits | None = None  # of the gate; POOL, UNPOOL: of the positions
    sign: Bits | None = None  # UNPOOL: of the gate
    layer: int | None = None  # whose weights the phases hold; None: all of them are 1
    phases: list[Phase] = field(default_factory=list)
    bias: NDArray[np.float32] | None = None
    window: Pair = (1, 1)
    stride: Pair = (1, 1)
    port: int = 0
    affine: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None  # mean and spread of a channel


class Plan:
    """Tensors and the jobs that compute them, in order; `leak`: the share of a gradient that passes inactive units."""

    def __init__(self, leak: float = 0.0) -> None:
        self.leak = leak
        self.tensors: list[Tensor] = []
        self.jobs: list[Job] = []

    def tensor(self, shape: tuple[int, int, int]) -> int:
        """The number of a new tensor."""
        self.tensors.append(Tensor(shape))
        return len(self.tensors) - 1

    def frame(self) -> None:
        """Give every tensor the frame of zeros that is read around it."""
        for job in self.jobs:
            for phase in job.phases:
                self._widen(self.tensors[job.source], phase)

    def last_uses(self) -> dict[int, int]:
        """By tensor, the last job that reads or writes it."""
        last: dict[int, int] = {}
        for number, job in enumerate(self.jobs):
            last |= {tensor: number for tensor in (job.source, job.add, job.target) if tensor >= 0}
        return last

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
