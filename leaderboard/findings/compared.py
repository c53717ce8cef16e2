"""Two rows compared seed by seed, with the board's own verdict where the board has one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from prunebench.bench import stats
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.contrasts import ALPHA, GAP, Contrast

Key = tuple[Decimal, str]  # a row of a board: sparsity and label


@dataclass(frozen=True)
class Compared:
    """Robust accuracy of `ours` minus that of `theirs`, each a row of one board, over the `seeds` that both have.

    `test`: the t-test paired by seed. `adjusted`: its p-value by Holm, from the board where it makes this comparison,
    else over this question's comparisons at this sparsity. `power`: the chance to find a true difference of 3 points,
    None where the spread is unknown.
    """

    ours: Key
    theirs: Key
    test: stats.SeedTest
    adjusted: float
    power: float | None

    @property
    def verdict(self) -> str:
        """+ if ours is clearly more robust, - if clearly less, = if the test cannot tell, ? with too few seeds."""
        if self.test.low is None or self.test.gap is None:
            return "?"
        if self.adjusted >= ALPHA:
            return "="
        return "+" if self.test.gap > 0 else "-"


def compare(board: Board, pairs: Iterable[tuple[Key, Key]]) -> list[Compared]:
    """The comparisons of those `pairs` of which `board` has both rows, in their order."""
    rows = {(row.sparsity, row.pruner): row for row in board.rows}
    there = [(ours, theirs) for ours, theirs in pairs if ours in rows and theirs in rows]
    tests = [_test(rows[ours], rows[theirs], board.n) for ours, theirs in there]
    on_board = {(c.sparsity, c.pruner, c.control): c for c in board.contrasts}
    known = [_of_board(on_board, *pair) for pair in there]
    found: list[Compared] = []
    for sparsity in dict.fromkeys(ours[0] for ours, _ in there):
        here = [i for i, (ours, _) in enumerate(there) if ours[0] == sparsity]
        own = [i for i in here if known[i] is None]
        holm = dict(zip(own, stats.holm([tests[i].p for i in own]), strict=True))
        family = Counter(contrast.family for contrast in board.contrasts if contrast.sparsity == sparsity)
        for i in here:
            contrast, test = known[i], tests[i]
            count = len(own) if contrast is None else family[contrast.family]
            power = None if not test.sd else stats.power(GAP, test.sd, test.seeds, max(1, count), ALPHA)
            adjusted = holm[i] if contrast is None else contrast.adjusted
            found.append(Compared(*there[i], test, adjusted, power))
    return found


def _test(ours: Row, theirs: Row, n: int) -> stats.SeedTest:
    counts = [dict(zip(row.seeds, row.robust.counts, strict=True)) for row in (ours, theirs)]
    common = sorted(counts[0].keys() & counts[1].keys())
    return stats.by_seed([counts[0][seed] - counts[1][seed] for seed in common], n, 1 - ALPHA)


def _of_board(on_board: Mapping[tuple[Decimal, str, str], Contrast], ours: Key, theirs: Key) -> Contrast | None:
    """The board's contrast of two rows of one sparsity, in either direction."""
    if ours[0] != theirs[0]:
        return None
    return on_board.get((ours[0], ours[1], theirs[1])) or on_board.get((ours[0], theirs[1], ours[1]))


def named(board: Board, label: str) -> str:
    """The label of `board` that means `label`: hyphens, underscores and case do not count. `label` if none does."""
    return next((row.pruner for row in board.rows if _plain(row.pruner) == _plain(label)), label)


def _plain(label: str) -> str:
    name, colon, options = label.partition(":")
    return re.sub("[-_]", "", name).lower() + colon + options


def at_every_sparsity(board: Board, pairs: Sequence[tuple[str, str]]) -> list[tuple[Key, Key]]:
    """These pairs of labels at each sparsity of the board, the densest first."""
    sparsities = sorted({row.sparsity for row in board.rows})
    return [((s, named(board, a)), (s, named(board, b))) for a, b in pairs for s in sparsities]
