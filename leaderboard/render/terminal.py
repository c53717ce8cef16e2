"""Boards -> terminal tables."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from prunebench.leaderboard.board import Ranking
from prunebench.leaderboard.provenance import summary
from prunebench.leaderboard.render.columns import TERMINAL, columns, filled, texts
from prunebench.leaderboard.render.text import clean, main_doubts, odds, powers


def terminal(ranking: Ranking) -> list[Table]:
    """One table per board and one of the nets that were not scored, to fit 80 columns.

    The verdict is the one against magnitude pruning.
    """
    tables = []
    for board in ranking.boards:
        official = "official" if board.official else "not official"
        title = f"{board.protocol} v{board.version}, {official}, {board.n} images, {board.records} records"
        head = [clean(line) for line in (title, board.asked) if line]
        said = [board.note, summary(board, clean), *odds(board), *powers(board), *map(clean, main_doubts(board))]
        note = "\n".join(said)
        table = Table(
            title=Text("\n".join(head)),
            caption=Text(note),
            caption_justify="left",
            box=None,
            pad_edge=False,
        )
        lines = [texts(board, row) | {"Clean %": f"{100 * row.clean.mean:.1f}"} for row in board.rows]
        shown = columns(filled(TERMINAL, lines))
        for column in shown:
            left, whole = column.left, column.title != "Pruner"
            table.add_column(column.title, justify="left" if left else "right", overflow="fold", no_wrap=whole)
        above = None
        for row, line in zip(board.rows, lines, strict=True):
            if above != (row.sparsity, row.role):
                if above is not None:
                    table.add_row()
                if above is None or above[0] != row.sparsity:
                    table.add_row("", Text(f"at sparsity {row.sparsity:f}", style="bold"))
            above = row.sparsity, row.role
            table.add_row(*(Text(clean(line[column.title])) for column in shown))
        tables.append(table)
    if ranking.refused:
        table = Table("Record", "Check", "Reason", title="Not scored", box=None, pad_edge=False)
        for net in ranking.refused:
            table.add_row(*(Text(clean(text)) for text in (net.record, net.check, net.reason)))
        tables.append(table)
    return tables
