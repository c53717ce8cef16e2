"""Packs the weights of a convolution in the order in which the cheapest kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunebench.bench.errors import PrunebenchError

GROUP = 16  # images stored side by side
LOAD, STORE, FRAME, CONV, DENSE, POOL, UNPOOL = range(7)
PIXEL, FLAT, SQUARE = range(3)  # tiles of 1 x 1, 1 x 8 and 2 x 4 output pixels
QUAD = 4  # output channels that share their inputs
# Processor cycles per pixel (AMD Zen 5, 16 floats wide): for a weight with its inputs in the L2 cache, or in L1; for a
# sum that is stored and loaded again; for a weight of four channels (2.5 for large images, 4 if their rows are shorter
# than a tile).
FAR, NEAR, PAUSE, FOUR = 1.3, 0.8, 2.6, 2.8
WINDOW = 40 * 1024  # bytes of input that stay in the L1 cache

Pair = tuple[int, int]
Entries = np.dtype([("offset", np.int32), ("weight", np.float32)])
Quads = np.dtype([("offset", np.int32), ("weight", np.float32, QUAD)])


@dataclass(frozen=True)
class Phase:
    """A convolution onto every `step`-th pixel from `origin`: rows x cols pixels, read `stride` pixels apart.

    `taps`: one row per weight: output channel, input channel, row and column that the first pixel reads; `holds`: the
    index of each weight among the layer's weights.
    """

    origin: Pair
    step: Pair
    stride: Pair
    extent: Pair
    taps: NDArray[np.int64]
    holds: NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """A phase as a kernel reads it: fields of Instruction by name, with the weights in `entries` not yet filled in.

    `taps`: for each position in `entries["weight"]` the tap whose weight it holds, -1 if there is none.
    """

    kind: int
    tile: int
    blocks: int
    starts: NDArray[np.int32]
    entries: NDArray[Any]
    taps: NDArray[np.int64]


def pack(phase: Phase, pitches: NDArray[np.int64], channels: int) -> Packed:
    """A phase for the cheaper kernel; `pitches`: floats from one input channel, row and column to the next.

    Raises PrunebenchError where offsets exceed the kernels' integers.
    """
    outputs, offsets = phase.taps[:, 0], phase.taps[:, 1:] @ pitches
    low = int(offsets.min(initial=0))
    span = int(offsets.max(initial=0)) - low + 1
    if span > np.iinfo(np.int32).max:
        raise PrunebenchError(
            f"The images are too large for the sparse kernels: weights of a layer read {span} floats apart, but at "
            f"most {np.iinfo(np.int32).max} is possible; call the net itself."
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
    """The tile that covers the result with the fewest extra pixels, and its computed pixels per pixel of the result.

    A single pixel costs as much as three pixels of a tile.
    """
    rows, cols = phase.extent
    pixels = {FLAT: rows * -(-cols // 8) * 8, SQUARE: -(-rows // 2) * 2 * -(-cols // 4) * 4}
    least = min(pixels, key=lambda tile: pixels[tile])
    if 3 * rows * cols < pixels[least] or phase.stride[1] > 2:
        return PIXEL, 3.0
    return least, pixels[least] / (rows * cols)


def _blocks(phase: Phase, tile: int, channels: int) -> tuple[int, int, float]:
    """Input channels per block, number of blocks, cost of their weights; one block where more do not pay."""
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
