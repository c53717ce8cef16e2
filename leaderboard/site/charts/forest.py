"""Differences to magnitude and to random pruning, each with its paired interval and a dot per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from statistics import fmean

from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.contrasts import Contrast
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import points
from prunebench.leaderboard.roles import PRIMARY, RANDOM
from prunebench.leaderboard.site.looks import look_of
from prunebench.leaderboard.site.svg import (
    Chart,
    Scale,
    around,
    bottom_axis,
    canvas,
    line,
    mark,
    path,
    prose,
    seeds,
    text,
    ticks,
    within,
)

NAMES, PANEL, FIGURES, LINE, HEAD, FOOT = 170, 230, 172, 22, 46, 46  # widths, then heights, in pixels
WIDTH = NAMES + 2 * (PANEL + FIGURES)


def of_board(board: Board) -> Chart | None:
    """A block per sparsity, a line per method, a panel per control; None where nothing was tested."""
    parts: list[str] = []
    top = 0.0
    for sparsity in sparse(board):
        methods = [row for row in board.rows if row.sparsity == sparsity and row.role == "method"]
        tested = {row.pruner: [_contrast(board, row, control) for control in (PRIMARY, RANDOM)] for row in methods}
        shown = [row for row in methods if any(c is not None and c.low is not None for c in tested[row.pruner])]
        if not shown:
            continue
        shown.sort(key=lambda row: (-row.robust.mean, row.pruner))
        parts += _block(board, sparsity, shown, tested, top)
        top += HEAD + LINE * len(shown) + FOOT
    if not parts:
        return None
    title, sentence = _told(board)
    return Chart(title, canvas(WIDTH, round(top), parts, f"{title}. {sentence}"), sentence, wide=True)


def _contrast(board: Board, row: Row, control: str) -> Contrast | None:
    asked = row.sparsity, row.pruner, control
    return next((c for c in board.contrasts if (c.sparsity, c.pruner, c.control) == asked), None)


def _gaps(ours: Row, theirs: Row, n: int, seeds: Sequence[int]) -> list[float]:
    """The difference in points for each of the `seeds`."""
    counts = [dict(zip(row.seeds, row.robust.counts, strict=True)) for row in (ours, theirs)]
    return [100 * (counts[0][seed] - counts[1][seed]) / n for seed in seeds]


def _block(
    board: Board,
    sparsity: Decimal,
    rows: Sequence[Row],
    tested: Mapping[str, Sequence[Contrast | None]],
    top: float,
) -> list[str]:
    bottom = top + HEAD + LINE * len(rows)
    parts = [prose(4, top + 20, f"Sparsity {sparsity:f}", "strong")]
    for i, row in enumerate(rows):
        y = top + HEAD + LINE * (i + 0.5)
        parts += [mark(10, y, look_of(row.pruner)), text(22, y + 4, row.pruner)]
    for k, control in enumerate((PRIMARY, RANDOM)):
        known = {row.pruner: c for row in rows if (c := tested[row.pruner][k]) is not None and c.low is not None}
        other = next((row for row in board.rows if (row.sparsity, row.pruner) == (sparsity, control)), None)
        if not known or other is None:
            continue
        left = NAMES + k * (PANEL + FIGURES)
        gaps = {row.pruner: _gaps(row, other, board.n, c.seeds) for row in rows if (c := known.get(row.pruner))}
        ends = [100 * end for c in known.values() for end in (c.low, c.high) if end is not None]
        dots = [gap for those in gaps.values() for gap in those]
        x = Scale(*within(around([0.0, *ends, *dots]), -100), left, left + PANEL)
        parts.append(prose(left, top + 38, f"Points minus {control}", "muted"))
        at = [(value, f"{value:+g}" if value else "0") for value in ticks(x.low, x.high, 5)]
        parts += bottom_axis(x, bottom + 4, "", at, top + HEAD)
        parts.append(path([(x(0), top + HEAD - 4), (x(0), bottom + 4)], "line zero"))
        for i, row in enumerate(rows):
            if (contrast := known.get(row.pruner)) is not None:
                y = top + HEAD + LINE * (i + 0.5)
                parts += _line(row.pruner, contrast, gaps[row.pruner], x, y)
                kind = "strong" if contrast.verdict != "=" else "muted"
                parts.append(prose(left + PANEL + 8, y + 4, points(contrast), kind))
    return parts


def _line(label: str, contrast: Contrast, gaps: Sequence[float], x: Scale, y: float) -> list[str]:
    """The interval, its mean, and a dot per seed."""
    look = look_of(label)
    low, high = (x(100 * (end or 0.0)) for end in (contrast.low, contrast.high))
    return [seeds(list(map(x, gaps)), y, look), line([(low, y), (high, y)], look), mark(x(fmean(gaps)), y, look)]


def _told(board: Board) -> tuple[str, str]:
    """Against which control the methods win, over all sparsities."""
    said = []
    for control in (PRIMARY, RANDOM):
        tests = [c for c in board.contrasts if c.control == control and c.low is not None and c.family != "places"]
        if tests:
            better = sum(c.verdict == "+" for c in tests)
            worse = sum(c.verdict == "-" for c in tests)
            said.append(f"against {control}, {better} of {len(tests)} clearly above and {worse} below")
    title = f"{'; '.join(said).capitalize()}"
    sentence = (
        "Robust accuracy minus that of the control, in points: mean and 95 % interval of the t-test paired by seed, "
        "and a faint dot per seed. Bold figures are clear after Holm's correction for all comparisons of their "
        "family at the sparsity."
    )
    return title, sentence
