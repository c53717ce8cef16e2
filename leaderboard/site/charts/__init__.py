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


def of_board(board: Board, results: Results, source: Path) -> tuple[list[Chart], list[str]]:
    """Every other chart that the records of `board` and the files beside them below `source` allow.

    Also a sentence for each chart that they do not allow. Raises PrunebenchError for outcomes or nets other than those
    that the records name.
    """
    paths = [Path(path) for row in board.rows for path in row.records]
    records = {path: record for path in paths if isinstance(record := results[path], Record)}
    drawn = (
        ("clean and robust accuracy", "a pruned method", accuracy.clean_against_robust(board)),
        ("images by method", "the outcomes of two methods", images.of_board(board, records, source)),
        ("the training budget", "a pruned method", cost.of_board(board, records)),
        ("the overlap of masks", "two nets beside their records", masks.of_board(board, records, source)),
        ("the densities of layers", "nets of several layers", weights.densities(board, records)),
        ("the norms of weights", "records of two rows that note them", weights.spread(board, records)),
        ("the sizes of kept weights", "the nets of two methods", sizes.of_board(board, records, source)),
        ("classes", "outcomes of an unpruned net and of a method", classes.of_board(board, records, source)),
        ("robust overfitting", "records with validation curves", curves.of_board(board, records)),
    )
    missing = [
        f"There is no chart of {what}: it needs {needed} at the highest sparsity."
        for what, needed, chart in drawn
        if chart is None
    ]
    return [chart for *_, chart in drawn if chart is not None], missing
