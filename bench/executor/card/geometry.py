"""The table of numbers that tells a kernel where its launch reads and writes; all pitches count pixels."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from itertools import takewhile

Pitches = tuple[int, int, int, int]  # the first pixel; from one channel, row and column to the next


@dataclass(frozen=True)
class Geometry:
    """The numbers of one launch, in the order in which kernels find them in memory.

    `blocks`: blocks of output channels. `channels`, `rows`, `cols`: of what is computed. `tiles`: tiles per row of
    pixels. `source_rows`, `source_cols`: of a pool's smaller side, when its gradient is computed.
    """

    blocks: int
    channels: int
    rows: int
    cols: int
    tiles: int = 1
    source_rows: int = 1
    source_cols: int = 1
    read: Pitches = (0, 0, 0, 0)
    out: Pitches = (0, 0, 0, 0)
    add: Pitches = (0, 0, 0, 0)
    saved: Pitches = (0, 0, 0, 0)
    sign: Pitches = (0, 0, 0, 0)

    def numbers(self) -> list[int]:
        """All numbers, one after the other."""
        return [each for field in astuple(self) for each in (field if isinstance(field, tuple) else (field,))]


def place(name: str) -> int:
    """Where a field begins in `Geometry.numbers`."""
    before = takewhile(lambda field: field.name != name, fields(Geometry))
    return sum(len(field.default) if isinstance(field.default, tuple) else 1 for field in before)
