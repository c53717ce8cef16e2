"""Which rows the charts show, and the wording that they share."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.render.text import short_list
from prunebench.leaderboard.roles import PRIMARY, RANDOM

NAMED = 3  # methods without room in a chart that its sentence names
MOST = 9  # rows of one sparsity in a chart: more lines cannot be told apart


def shown(board: Board, sparsity: Decimal) -> list[Row]:
    """The methods and random pruning at `sparsity`, by robust accuracy, at most MOST.

    Where there are more, those that clearly beat magnitude pruning at some sparsity go first, then plain methods before
    variants, then the more robust ones.
    """
    rows = [row for row in board.rows if row.sparsity == sparsity and (row.role == "method" or row.pruner == RANDOM)]
    ahead = {PRIMARY, RANDOM} | {c.pruner for c in board.contrasts if c.family == "primary" and c.verdict == "+"}
    rank = sorted(rows, key=lambda row: (row.pruner not in ahead, ":" in row.pruner, -row.robust.mean))
    return sorted(rank[:MOST], key=lambda row: (-row.robust.mean, row.pruner))


def left_out(board: Board, sparsity: Decimal | None, there: Sequence[Row]) -> str:
    """A sentence on the methods of `sparsity`, or of the board, that a chart does not show; empty if there are none."""
    methods = [row.pruner for row in board.rows if row.role == "method" and sparsity in (None, row.sparsity)]
    drawn = {row.pruner for row in there}
    missing = [name for name in dict.fromkeys(methods) if name not in drawn]
    if len(missing) > NAMED:
        return f" {len(missing)} other methods are in the table alone."
    return f" In the table alone: {short_list(missing)}." if missing else ""


def reference(board: Board) -> Row | None:
    """The unpruned net of plain training, else the first unpruned row; None if there is none."""
    rows = [row for row in board.rows if row.role == "reference"]
    return next((row for row in rows if row.pruner == "dense"), rows[0] if rows else None)
