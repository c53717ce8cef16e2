"""The command that makes the records of rows again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from prunebench.bench.protocol import PROTOCOLS
from prunebench.leaderboard.board import Board, Row


def command(board: Board, labels: Sequence[str], *, row: Row | None = None, best: bool = False) -> str:
    """The `prunebench run` for the pruners `labels` of `board`, on one line.

    `row`: only its sparsity and its seeds. `best`: also score the best-known number. Rules that are not built in are
    looked for beside the records.
    """
    rules = board.protocol if board.protocol in PROTOCOLS else f"leaderboard/protocols/{board.protocol}.toml"
    words = ["prunebench", "run", rules, *(word for label in labels for word in ("--pruner", label))]
    if row is not None:
        words += ["--sparsity", f"{row.sparsity:f}"]
        words += [word for seed in row.seeds for word in ("--seed", str(seed))]
        words += [word for name in row.inexact[:1] for word in ("--arithmetic", name)]
        best = row.best is not None
    return one_line(shlex.join([*words, *(["--best"] * best), "--out", "runs"]))


def one_line(text: str) -> str:
    """`text` without line breaks, and with a question mark for what a terminal or Markdown could take for more."""
    return re.sub(r"[^\x20-\x7e]|`", "?", text)
