"""How large the kept weights are: which methods spend positions on weights that hardly count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.nets import TINY, Sizes, sizes
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import percent, short
from prunebench.leaderboard.site.charts.common import left_out, reference, shown
from prunebench.leaderboard.site.looks import look_of
from prunebench.leaderboard.site.svg import Chart, Scale, bottom_axis, canvas, line, mark, path, prose, text

WIDTH, LEFT, RIGHT, TOP, ROW = 530, 200, 456, 44, 30
LEAST = 1e-3  # smaller sizes are drawn here
CLEAR, FAR = 0.02, 3  # a share of tiny weights is named beside another that is FAR times smaller, if it is this large


def of_board(board: Board, records: Mapping[Path, Record], source: Path) -> Chart | None:
    """A bar per row at the highest sparsity, and one of the unpruned net; None for fewer than two nets of methods."""
    sparsities, dense = sparse(board), reference(board)
    there = shown(board, sparsities[-1]) if sparsities else []
    rows = ([dense] if dense else []) + there
    found = [(row, known) for row in rows if (known := sizes(row, records, source)) is not None]
    pruned = sorted([pair for pair in found if pair[0].sparsity], key=lambda pair: pair[1].tiny)
    if sum(row.role == "method" for row, _ in pruned) < 2:
        return None
    ordered = [pair for pair in found if not pair[0].sparsity] + pruned
    logs = [math.log10(max(LEAST, value)) for _, of in ordered for value in of.quantiles]
    x = Scale(min(logs) - 0.1, max(logs) + 0.05, LEFT, RIGHT)
    bottom = TOP + ROW * len(ordered)
    at = [(math.log10(value), f"{value:g}") for value in _steps(x)]
    parts = bottom_axis(x, bottom, "Size of a kept weight, 1 = its layer's root mean square (log)", at, TOP - 8)
    parts.append(prose(RIGHT + 12, TOP - 14, "Tiny, %"))
    for i, (row, of) in enumerate(ordered):
        parts += _spread(row, of, x, TOP + ROW * (i + 0.5))
    title, said = _told([pair for pair in pruned if pair[0].role == "method"])
    sentence = (
        f"Thin lines hold 90 % of the kept weights, thick ones the middle half, marks are medians; pruned nets at "
        f"{sparsities[-1]:f}. {said}{left_out(board, sparsities[-1], [row for row, _ in pruned])}"
    )
    return Chart(title, canvas(WIDTH, bottom + 50, parts, f"{title}. {sentence}"), sentence)


def _steps(x: Scale) -> list[float]:
    """1, 2 and 5 times powers of ten on the logarithmic scale `x`, or powers of ten alone where they are many."""
    powers = range(math.floor(x.low), math.ceil(x.high) + 1)
    fine = [k * 10.0**power for power in powers for k in (1, 2, 5) if x.low <= math.log10(k) + power <= x.high]
    return fine if len(fine) <= 7 else [value for value in fine if round(math.log10(value), 6) % 1 == 0]


def _spread(row: Row, of: Sizes, x: Scale, y: float) -> list[str]:
    """The sizes below which 5, 25, 50, 75 and 95 % of the kept weights lie."""
    look = look_of(row.pruner)
    p5, p25, p50, p75, p95 = (x(math.log10(max(LEAST, value))) for value in of.quantiles)
    name = row.pruner if row.sparsity else f"{row.pruner}, unpruned"
    parts = [text(LEFT - 12, y + 4, name, "", "end"), line([(p5, y), (p95, y)], look)]
    parts.append(path([(p25, y - 6), (p75, y - 6), (p75, y + 6), (p25, y + 6)], f"f{look.colour} faint", closed=True))
    return [*parts, mark(p50, y, look), text(RIGHT + 12, y + 4, percent(of.tiny), "strong")]


def _told(methods: Sequence[tuple[Row, Sizes]]) -> tuple[str, str]:
    """The shares of weights that hardly count in the first and the last of `methods`, which are in this order.

    No test stands behind an order of methods, so the title names none where the two shares are close.
    """
    (first, few), (last, many) = methods[0], methods[-1]
    tiny = f"Tiny means below {TINY:g} of the root mean square of a layer's kept weights"
    if many.tiny < max(CLEAR, FAR * few.tiny):
        title = "The methods shown keep similar shares of tiny weights"
        return title, f"{tiny}: {percent(few.tiny)} to {percent(many.tiny)} % of them."
    title = f"{percent(many.tiny)} % of the weights in {short(last.pruner)} are tiny"
    title += f", {percent(few.tiny)} % in {short(first.pruner)}"
    return title, f"{tiny}."
