"""The sortable and filterable tables of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.render.columns import SAID, Column, columns, filled, leading, texts
from prunebench.leaderboard.render.text import points, references, resampled, verdict, with_interval

_NUMBERS = ("Sparsity", "AutoAttack %", "Clean %", "Difference", "Bootstrap", "p, Holm", "Common seeds")


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table: its text, its sort key (None: the text) and its link.

    `doubt`: the names of raised flags, shown behind a sign.
    """

    text: str
    order: float | None = None
    href: str | None = None
    doubt: str | None = None


@dataclass(frozen=True)
class Sortable:
    """A table that readers can sort and filter with the widget."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def of_rows(caption: str, board: Board, rows: Sequence[tuple[str, Row]], titles: Sequence[str]) -> Sortable | None:
    """A table of these rows, each with the address of its page; None if there are no rows."""
    if not rows:
        return None
    shown = columns(filled(titles, [texts(board, row) for _, row in rows]))
    lines = []
    for href, row in rows:
        line = {column.title: _cell(column, board, row) for column in shown}
        doubt = ", ".join(dict.fromkeys(doubt.name for doubt in row.flags))
        line["Pruner"] = Cell(row.pruner, href=href)
        line["Robust %"] = Cell(with_interval(row.robust), row.robust.mean, f"{href}#flags", doubt or None)
        lines.append(tuple(line.values()))
    return Sortable(caption, tuple(column.short or column.title for column in shown), tuple(lines))


def _cell(column: Column, board: Board, row: Row) -> Cell:
    text = column.text(board, row) if column.text else ""
    return Cell(text, column.order(board, row) if column.order else None)


def of_attacks(board: Board, hrefs: Sequence[str]) -> Sortable:
    """The images that each row classifies correctly after each attack, in percent."""
    weak = list(dict.fromkeys(attack for row in board.rows for attack in row.weak))
    titles = ("Pruner", "Sparsity", "clean", *(f"after {a}" for a in board.attacks), *(f"{a} alone" for a in weak))
    rows = []
    for href, row in zip(hrefs, board.rows, strict=True):
        counts = [row.clean.mean * board.n, *row.survived.values(), *(row.weak.get(attack) for attack in weak)]
        shares = [None if count is None else 100 * count / board.n for count in counts]
        percents = [Cell("" if share is None else f"{share:.1f}", -1.0 if share is None else share) for share in shares]
        rows.append((Cell(row.pruner, None, href), Cell(f"{row.sparsity:f}", float(row.sparsity)), *percents))
    caption = f"{board.protocol}, version {board.version}: images still correct, %"
    return Sortable(caption, titles, tuple(rows))


def of_contrasts(board: Board) -> Sortable | None:
    """All methods against their controls, one line per contrast."""
    lines = [
        {
            "Pruner": contrast.pruner,
            "Sparsity": f"{contrast.sparsity:f}",
            "Control": contrast.control,
            "Difference": points(contrast),
            "Bootstrap": resampled(contrast),
            SAID: verdict(contrast),
            "p, Holm": f"{contrast.adjusted:.3f}",
            "Common seeds": str(len(contrast.seeds)),
        }
        for contrast in board.contrasts
        if contrast.family != "places"
    ]
    return _of_texts(f"{board.protocol}: methods against their controls", lines)


def of_references(board: Board) -> Sortable | None:
    """The numbers that others published on the board's task."""
    return _of_texts(f"{board.protocol}: published by others, not measured here", references(board))


def _of_texts(caption: str, shown: Sequence[dict[str, str]]) -> Sortable | None:
    """A table of these texts, with numeric columns sorted by number; None if there are no texts."""
    if not shown:
        return None
    rows = [
        tuple(Cell(text, leading(text) if title in _NUMBERS else None) for title, text in row.items()) for row in shown
    ]
    return Sortable(caption, tuple(shown[0]), tuple(rows))
