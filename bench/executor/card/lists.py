"""Packs the weights of a convolution into lists of equal length, a block of lists per program of the kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunebench.bench.executor.card.tiles import Tiles
from prunebench.bench.executor.packing import QUAD, Phase


@dataclass(frozen=True)
class Lists:
    """A phase's weights as the kernel reads them: per step and list an offset, and the weights of `shared` channels.

    `starts`: the step at which each block begins, and the end. `firsts`: the first channel of each list. `taps`: for
    each weight the tap whose weight it holds, -1 if there is none. Lists shorter than the longest of their block are
    filled up with zeros that read where their last weight does.
    """

    shared: int
    lines: int
    unroll: int
    starts: NDArray[np.int32]
    firsts: NDArray[np.int32]
    offsets: NDArray[np.int32]
    taps: NDArray[np.int64]

    @property
    def blocks(self) -> int:
        """Blocks of lists."""
        return len(self.starts) - 1


def pack(phase: Phase, pitches: NDArray[np.int64], channels: int, tiles: Tiles) -> Lists:
    """The lists of a phase with `channels` results; `pitches`: pixels from one input channel, row, column to the next.

    Long lists come first, so that those of a block are about equally long.
    """
    outputs, offsets = phase.taps[:, 0], phase.taps[:, 1:] @ pitches
    low = int(offsets.min(initial=0))
    span = int(offsets.max(initial=0)) - low + 1
    joined = np.unique(outputs // QUAD * span + offsets - low)
    shared = QUAD if tiles.shared_cost * len(joined) < len(outputs) else 1
    keys = outputs // shared * span + offsets - low
    reads, which = np.unique(keys, return_inverse=True)  # by list, then by place: lists move through the input together
    count = -(-channels // shared)
    lengths = np.bincount(reads // span, minlength=count)
    order = np.argsort(-lengths, kind="stable")
    lines = min(max(1, tiles.lines // (2 if shared > 1 else 1)), 1 << (count - 1).bit_length())
    blocks = -(-count // lines)
    unroll = min(tiles.unroll, 1 << max(int(lengths.max(initial=1)).bit_length() - 1, 0))
    longest = lengths[order[::lines]]
    starts = np.append(0, (-(-longest // unroll) * unroll).cumsum())
    begins = np.append(0, lengths.cumsum())
    places = np.zeros((starts[-1], lines), np.int64)  # by step and line, the position in `reads`
    real = np.zeros_like(places, dtype=bool)
    firsts = np.full(blocks * lines, channels)
    for rank, line in enumerate(order):
        block, column = divmod(rank, lines)
        firsts[rank] = line * shared
        steps = np.arange(starts[block + 1] - starts[block])
        whose = line if lengths[line] else order[block * lines]  # a list without weights reads with its neighbour
        places[starts[block] : starts[block + 1], column] = begins[whose] + np.minimum(steps, lengths[whose] - 1)
        real[starts[block] : starts[block + 1], column] = steps < lengths[line]
    for column in range(count - (blocks - 1) * lines, lines):  # lists that do not exist
        places[starts[-2] :, column] = places[starts[-2] :, 0]
    held = np.full((len(reads), shared), -1)
    held[which, outputs % shared] = np.arange(len(outputs))
    taps = np.where(real[..., None], held[places], -1) if len(reads) else np.zeros(0, np.int64)
    read = reads[places] % span + low if len(reads) else np.zeros(0, np.int64)
    begin, first, offset = (each.astype(np.int32).ravel() for each in (starts, firsts, read))
    return Lists(shared, lines, unroll, begin, first, offset, taps.ravel())
