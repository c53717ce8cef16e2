"""The file formats in which a board is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunebench.leaderboard.board import Ranking
from prunebench.leaderboard.render import data, latex, markdown
from prunebench.leaderboard.site.charts.accuracy import against_sparsity
from prunebench.leaderboard.site.looks import standalone
from prunebench.leaderboard.site.svg import canvas, prose


@dataclass(frozen=True)
class Format:
    """One output format: its file name, how it is rendered, and how each of its files begins."""

    file: str
    render: Callable[[Ranking], str]
    begins: str


def picture(ranking: Ranking) -> str:
    """The leading board as a picture, robust accuracy against sparsity; an empty one where nothing was pruned."""
    chart = against_sparsity(ranking.boards[0]) if ranking.boards else None
    empty = "There are no pruned nets yet"
    return standalone(canvas(300, 40, [prose(20, 25, empty)], empty) if chart is None else chart.svg)


FORMATS = {
    "md": Format("README.md", markdown.markdown, markdown.GENERATED),
    "csv": Format("board.csv", data.comma_separated, ",".join(data.BOARD)),
    "json": Format("board.json", data.as_json, '{\n "prunebench_board": '),
    "tex": Format("board.tex", latex.latex, latex.GENERATED),
    "svg": Format("board.svg", picture, '<svg class="chart"'),
}
