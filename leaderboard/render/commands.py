"""The command that makes the records of rows again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from prunebench.bench.protocol import PROTOCOLS
from prunebench.leaderboard.board import Board, Row


def command(board: Board, rows: Sequence[Row], *, best: bool = False) -> str:
    """The `prunebench run` for `rows` of `board`: their pruners, sparsities and seeds, on one line.

    `best`: score the best-known number, which also happens if a row has it. Rules that are not built in are looked for
    beside the records.
    """
    rules = board.protocol if board.protocol in PROTOCOLS else f"leaderboard/protocols/{board.protocol}.toml"
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
