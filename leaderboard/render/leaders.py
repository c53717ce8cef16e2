"""Who is best at each sparsity, by how much, and what cannot be told from it: the first thing every page says."""

from __future__ import annotations

from decimal import Decimal

from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.contrasts import Contrast
from prunebench.leaderboard.render.text import listed, points, short, short_list, with_interval
from prunebench.leaderboard.roles import PRIMARY

NAMED = 6  # methods that a sentence names; of more it gives the number


def sparse(board: Board) -> list[Decimal]:
    """The sparsities of pruned rows, the densest first."""
    return sorted({row.sparsity for row in board.rows if row.sparsity})


def between(board: Board, ours: Row, theirs: Row) -> Contrast | None:
    """The board's contrast of two rows of one sparsity, in the direction it has; None if it makes none."""
    asked = {ours.pruner, theirs.pruner}
    return next((c for c in board.contrasts if c.sparsity == ours.sparsity and {c.pruner, c.control} == asked), None)


def leader(board: Board, sparsity: Decimal) -> str:
    """The most robust method at `sparsity`, its difference to magnitude pruning, and the methods not told from it.

    Empty where there is no method.
    """
    methods = [row for row in board.rows if row.sparsity == sparsity and row.role == "method"]
    if not methods:
        return ""
    best = max(methods, key=lambda row: row.robust.mean)
    if len(methods) == 1:
        return f"{short(best.pruner)} is the only method: {with_interval(best.robust)} %."
    said = f"{short(best.pruner)} is highest: {with_interval(best.robust)} %"
    plain = next((row for row in methods if row.pruner == PRIMARY and row != best), None)
    against = None if plain is None else between(board, best, plain)
    if against is not None and against.gap is not None:
        said += f", {points(against)} points against {PRIMARY}"
    return f"{said}. {_ties(board, best, methods)}".rstrip()


def _above(contrast: Contrast, best: Row) -> bool:
    """Whether the test finds `best` clearly more robust than the other row of `contrast`."""
    return contrast.verdict == ("+" if contrast.pruner == best.pruner else "-")


def _ties(board: Board, best: Row, methods: list[Row]) -> str:
    others = [(row, between(board, best, row)) for row in methods if row != best]
    tested = [(row, contrast) for row, contrast in others if contrast is not None and contrast.low is not None]
    equal = [row.pruner for row, contrast in tested if not _above(contrast, best)]
    if not tested:
        return "The methods share too few seeds, so no difference is tested."
    if not equal:
        whom = "the other method" if len(others) == 1 else f"all {len(others)} others"
        if len(tested) < len(others):
            whom = f"the {len(tested)} of {len(others)} others that can be tested"
        return f"It is clearly above {whom}."
    if len(equal) <= NAMED:
        return f"The tests cannot tell it from {short_list(equal)}."
    first = listed([*map(short, equal[: NAMED - 1]), f"{len(equal) - NAMED + 1} more"])
    return f"The tests cannot tell it from {first}."
