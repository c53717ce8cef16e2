"""The commands that make the records of rows again."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from prunebench.bench.protocol import BESIDE_RECORDS, PROTOCOLS
from prunebench.leaderboard.board import Board, Row


def commands(board: Board, rows: Sequence[Row], *, best: bool = False) -> list[str]:
    """The lines that make `rows` of `board` and no others: one for all pruners with the same sparsities and seeds.

    `best`: score the best-known number, which also happens if a row has it.
    """
    found: defaultdict[tuple[str, tuple[int, ...]], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.pruner, row.seeds].append(row)
    groups: defaultdict[tuple[tuple[int, ...], frozenset[Decimal]], list[Row]] = defaultdict(list)
    for (_, seeds), those in found.items():
        groups[seeds, frozenset(row.sparsity for row in those)] += those
    for seeds, sparsities in list(groups):  # unpruned nets are made at any sparsity
        other = next((key for key in groups if key[0] == seeds and 0 not in key[1]), None)
        if sparsities == {0} and other:
            groups[other] += groups.pop((seeds, sparsities))
    return [command(board, those, best=best) for those in groups.values()]


def command(board: Board, rows: Sequence[Row], *, best: bool = False) -> str:
    """The `prunebench run` for all pruners of `rows`, at all their sparsities and with all their seeds, on one line.

    Rules that are not built in are looked for beside the records. `best`: as in `commands`.
    """
    rules = board.protocol if board.protocol in PROTOCOLS else f"{BESIDE_RECORDS}/{board.protocol}.toml"
    words = ["prunebench", "run", rules]
    words += [word for label in dict.fromkeys(row.pruner for row in rows) for word in ("--pruner", label)]
    sparsities = sorted({row.sparsity for row in rows})
    pruned = [f"{sparsity:f}" for sparsity in sparsities if sparsity]  # unpruned nets are trained at 0 in any case
    words += ["--sparsity", ",".join(pruned or ["0"])]
    words += ["--seed", ",".join(map(str, sorted({seed for row in rows for seed in row.seeds})))]
    words += [
        word for name in sorted({name for row in rows for name in row.inexact})[:1] for word in ("--arithmetic", name)
    ]
    best = best or any(row.best is not None for row in rows)
    return one_line(shlex.join([*words, *(["--best"] * best), "--out", "runs"]))


def one_line(text: str) -> str:
    """`text` without line breaks, and with a question mark for what a terminal or Markdown could take for more."""
    return re.sub(r"[^\x20-\x7e]|`", "?", text)
