"""The small tables of the first page: one per sparsity, an interval drawn in the cell, controls behind a switch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from markupsafe import Markup

from prunebench.leaderboard.board import Board, Rate, Row
from prunebench.leaderboard.render.columns import LESS, SAID, texts
from prunebench.leaderboard.render.leaders import leader, sparse
from prunebench.leaderboard.render.text import VERDICTS, power_of, with_interval
from prunebench.leaderboard.roles import RANDOM
from prunebench.leaderboard.site.looks import Look, look_of
from prunebench.leaderboard.site.svg import Scale, around, line, mark, path, seeds, within

WIDTH, HEIGHT, MARGIN = 120, 16, 6  # of an interval in a cell, in pixels
EXTRAS = ("Best known %", "Clean %", "Seeds")  # the columns that a phone has no room for

Key = tuple[Decimal, str]  # of a row: its sparsity and its label


@dataclass(frozen=True)
class Line:
    """A row: the address and the name of its page, its mark, its drawn interval, and its cells as text.

    `folded`: whether the switch hides it. `doubts`: the names of raised flags. `clear`: whether its verdict is.
    """

    href: str
    id: str
    row: Row
    mark: Markup
    drawn: Markup
    robust: str
    texts: Mapping[str, str]
    folded: bool
    doubts: tuple[str, ...]
    clear: bool


@dataclass(frozen=True)
class Small:
    """The table of one sparsity: who leads it, its lines, the range of the drawn intervals, and what it can detect."""

    title: str
    leader: str
    power: str
    range: str
    lines: tuple[Line, ...]
    extras: tuple[str, ...]
    compared: bool

    @property
    def folds(self) -> bool:
        """Whether the switch shows more of it."""
        return any(line.folded for line in self.lines)


def of_board(board: Board, hrefs: Mapping[Key, str]) -> list[Small]:
    """A table per sparsity, the densest first, then one of the unpruned nets; `hrefs`: the pages of the rows."""
    tables = []
    for sparsity in [*sparse(board), None]:
        rows = [row for row in board.rows if (row.sparsity == sparsity if sparsity else not row.sparsity)]
        if not rows:
            continue
        methods = sum(row.role == "method" for row in rows)
        title = f"Sparsity {sparsity:f}: {methods} method{'s' * (methods != 1)}" if sparsity else "Unpruned nets"
        told = (leader(board, sparsity), power_of(board, sparsity)) if sparsity else ("", "")
        tables.append(_table(board, rows, title, told, hrefs))
    return tables


def _table(board: Board, rows: Sequence[Row], title: str, told: tuple[str, str], hrefs: Mapping[Key, str]) -> Small:
    seen = [row for row in rows if not _is_folded(row)] or rows
    low, high = within(around([100 * end for row in seen for end in (row.robust.low, row.robust.high)]))
    scale = Scale(low, high, MARGIN, WIDTH - MARGIN)
    lines = []
    for row in rows:
        look, cells = look_of(row.pruner), texts(board, row)
        lines.append(
            Line(
                href := hrefs[row.sparsity, row.pruner],
                href.removeprefix("entries/").removesuffix(".html"),
                row,
                _svg(16, [mark(8, HEIGHT / 2, look)]),
                _svg(WIDTH, _interval(row.robust, board.n, scale, look)),
                with_interval(row.robust),
                cells,
                _is_folded(row),
                tuple(dict.fromkeys(doubt.name for doubt in row.flags)),
                cells[SAID].startswith((VERDICTS["+"], VERDICTS["-"])),
            )
        )
    extras = tuple(title for title in EXTRAS if any(line.texts[title] for line in lines))
    compared = any(line.texts[LESS] for line in lines)
    return Small(title, *told, f"{low:.0f} to {high:.0f} %", tuple(lines), extras, compared)


def _is_folded(row: Row) -> bool:
    """Whether the row is a shuffle or a method with a part replaced."""
    return row.role == "control" and row.pruner != RANDOM


def _interval(rate: Rate, n: int, scale: Scale, look: Look) -> list[str]:
    """The interval with its mean and a dot per seed; an arrow at the edge for one outside the range."""
    y = HEIGHT / 2
    if 100 * rate.high < scale.low or 100 * rate.low > scale.high:
        x, step = (MARGIN, 5) if 100 * rate.high < scale.low else (WIDTH - MARGIN, -5)
        return [path([(x + step, y - 4), (x, y), (x + step, y + 4)], f"line s{look.colour}")]
    dots = [100 * count / n for count in rate.counts if scale.low <= 100 * count / n <= scale.high]
    ends = [(scale(100 * rate.low), y), (scale(100 * rate.high), y)]
    several = [seeds([scale(dot) for dot in dots], y, look)] if len(rate.counts) > 1 else []
    return [*several, line(ends, look), mark(scale(100 * rate.mean), y, look)]


def _svg(width: int, parts: Sequence[str]) -> Markup:
    """A small picture that repeats what the cells beside it say."""
    inside = "".join(parts)
    size = f'width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}"'
    return Markup(f'<svg class="chart cell" {size} aria-hidden="true">{inside}</svg>')
