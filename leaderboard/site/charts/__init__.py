"""The static charts of a board: each from records and the files beside them, with a title and a sentence by rule."""

from __future__ import annotations

from pathlib import Path

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board
from prunebench.leaderboard.site.charts import accuracy, classes, cost, curves, forest, images, masks, sizes, weights
from prunebench.leaderboard.site.svg import Chart
from prunebench.leaderboard.table import Results

__all__ = ["Chart", "first", "of_board"]


def first(board: Board) -> list[Chart]:
    """The charts of the first page: who leads, and what is clear of magnitude and of random pruning."""
    return [chart for chart in (accuracy.against_sparsity(board), forest.of_board(board)) if chart is not None]


def of_board(board: Board, results: Results, source: Path) -> list[Chart]:
    """Every other chart that the records of `board`, and the outcomes and nets beside them below `source`, allow.

    Raises PrunebenchError for outcomes or nets other than those that the records name.
    """
    paths = [Path(path) for row in board.rows for path in row.records]
    records = {path: record for path in paths if isinstance(record := results[path], Record)}
    drawn = (
        accuracy.clean_against_robust(board),
        images.of_board(board, records, source),
        cost.of_board(board, records),
        masks.of_board(board, records, source),
        weights.densities(board, records),
        weights.spread(board, records),
        sizes.of_board(board, records, source),
        classes.of_board(board, records, source),
        curves.of_board(board, records),
    )
    return [chart for chart in drawn if chart is not None]
