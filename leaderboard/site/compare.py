"""What the page that compares two methods needs: the rows of each board and sparsity, and the board's tests."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from prunebench.leaderboard.board import Board, Ranking
from prunebench.leaderboard.render.columns import texts
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import clean, verdict
from prunebench.leaderboard.site.small import Key

FACTS = ("Place", "Robust %", "Best known %", "Clean %", "Median distance", "Training, M passes", "Counted", "Origin")


def groups(ranking: Ranking, hrefs: Mapping[str, Mapping[Key, str]]) -> list[dict[str, Any]]:
    """A group per board and sparsity with two rows or more: its rows, and the tests between them by their numbers.

    `hrefs`: by protocol, the pages of its rows. A test holds the difference and its interval as rates.
    """
    found = [_group(board, sparsity, hrefs[board.protocol]) for board in ranking.boards for sparsity in sparse(board)]
    return [group for group in found if len(group["rows"]) > 1]


def _group(board: Board, sparsity: Decimal, hrefs: Mapping[Key, str]) -> dict[str, Any]:
    rows = [row for row in board.rows if row.sparsity == sparsity]
    number = {row.pruner: i for i, row in enumerate(rows)}
    lines = []
    for row in rows:
        cells = texts(board, row)
        lines.append(
            {
                "name": clean(row.pruner),
                "href": hrefs[row.sparsity, row.pruner],
                "facts": [clean(cells[title]) for title in FACTS],
                "seeds": row.seeds,
                "robust": row.robust.counts,
            }
        )
    tests = [
        [number[c.pruner], number[c.control], c.gap, c.low, c.high, verdict(c), c.adjusted]
        for c in board.contrasts
        if c.sparsity == sparsity
    ]
    return {
        "name": f"{clean(board.protocol)} at {sparsity:f}",
        "n": board.n,
        "titles": FACTS,
        "rows": lines,
        "tests": tests,
    }
