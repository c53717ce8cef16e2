"""Robust accuracy at a single sparsity: a line per row, as long as its interval."""

from __future__ import annotations

from collections.abc import Sequence

from prunebench.leaderboard.board import Row
from prunebench.leaderboard.render.text import percent
from prunebench.leaderboard.site.looks import look_of
from prunebench.leaderboard.site.svg import Scale, around, bottom_axis, line, mark, text, ticks, within

WIDTH, LEFT, RIGHT, TOP, ROW = 530, 200, 456, 20, 30


def drawn(rows: Sequence[Row]) -> tuple[list[str], int]:
    """The parts of the chart, WIDTH pixels wide, with the `rows` from top to bottom; and its height in pixels."""
    bottom = TOP + ROW * len(rows)
    ends = [100 * end for row in rows for end in (row.robust.low, row.robust.high)]
    x = Scale(*within(around(ends)), LEFT, RIGHT)
    at = [(value, f"{value:g}") for value in ticks(x.low, x.high)]
    parts = bottom_axis(x, bottom, "Robust accuracy (AutoAttack), % of test images", at, TOP - 8)
    for i, row in enumerate(rows):
        y, look = TOP + ROW * (i + 0.5), look_of(row.pruner)
        parts.append(text(LEFT - 12, y + 4, row.pruner if row.sparsity else f"{row.pruner}, unpruned", "", "end"))
        parts.append(line([(x(100 * row.robust.low), y), (x(100 * row.robust.high), y)], look))
        parts.append(mark(x(100 * row.robust.mean), y, look))
        parts.append(text(RIGHT + 12, y + 4, percent(row.robust.mean), "strong"))
    return parts, bottom + 50
