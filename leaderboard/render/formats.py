"""The file formats in which a board is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunebench.leaderboard.board import Ranking
from prunebench.leaderboard.render import data, latex, markdown


@dataclass(frozen=True)
class Format:
    """One output format: its file name, how it is rendered, and how each of its files begins."""

    file: str
    render: Callable[[Ranking], str]
    begins: str


FORMATS = {
    "md": Format("README.md", markdown.markdown, markdown.GENERATED),
    "csv": Format("board.csv", data.comma_separated, ",".join(data.BOARD)),
    "json": Format("board.json", data.as_json, '{\n "prunebench_board": '),
    "tex": Format("board.tex", latex.latex, latex.GENERATED),
}
