"""Where the methods spend their budget, and what they get for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import percent, short, short_list
from prunebench.leaderboard.site.charts.common import left_out, shown
from prunebench.leaderboard.site.looks import look_of
from prunebench.leaderboard.site.svg import Chart, Scale, bar, bottom_axis, canvas, mark, path, prose, text

WIDTH, LEFT, RIGHT, TOP, ROW = 1240, 190, 890, 54, 34
NARROW = 7.2  # pixels of a character of a label inside a bar


def of_board(board: Board, records: Mapping[Path, Record]) -> Chart | None:
    """A bar per method at the highest sparsity, divided by stage; None without pruned methods."""
    sparsities = sparse(board)
    if not sparsities or not (rows := shown(board, sparsities[-1])):
        return None
    methods = [row for row in board.rows if row.sparsity == sparsities[-1] and row.role == "method"]
    spent = {row.pruner: stages(row, records) for row in (*rows, *methods)}
    bottom = TOP + ROW * len(rows)
    x = Scale(0, 100, LEFT, RIGHT)
    at = [(value, f"{value}") for value in range(0, 101, 20)]
    parts = bottom_axis(
        x, bottom, "Share of the training's sample passes, % (the last training has a frame)", at, TOP - 8
    )
    for place, head in ((960, "Robust, %"), (1060, "Search, %"), (1170, "Training time")):
        parts.append(prose(place, TOP - 16, head, "muted", "middle"))
    for i, row in enumerate(rows):
        y = TOP + ROW * i
        parts += [mark(LEFT - 172, y + 14, look_of(row.pruner)), text(LEFT - 160, y + 18, row.pruner)]
        parts += _bar(row, spent[row.pruner], x, y)
        parts.append(text(960, y + 18, percent(row.robust.mean), "strong", "middle"))
        parts.append(text(1060, y + 18, percent(searched(spent[row.pruner])), "", "middle"))
        parts.append(text(1170, y + 18, _time(row), "", "middle"))
    title, said = _told(methods, spent)
    sentence = (
        f"At {sparsities[-1]:f}. {said} Search: all stages before the last. Times are wall-clock means on "
        f"{short_list(sorted({device for row in rows for device in row.devices}))}, where jobs may share the machine."
        f"{left_out(board, sparsities[-1], rows)}"
    )
    return Chart(title, canvas(WIDTH, bottom + 50, parts, f"{title}. {sentence}"), sentence, wide=True)


def stages(row: Row, records: Mapping[Path, Record]) -> dict[str, float]:
    """The share of the sample passes of each stage, mean over the seeds, in order; stages of one name are added."""
    shares: defaultdict[str, float] = defaultdict(float)
    for record in row.records:
        cost = records[Path(record)].cost
        whole = sum(stage.passes for stage in cost.stages) or 1
        for stage in cost.stages:
            shares[stage.name] += stage.passes / whole / len(row.records)
    return dict(shares)


def searched(shares: Mapping[str, float]) -> float:
    """The share of everything before the last stage."""
    return sum(list(shares.values())[:-1])


def _bar(row: Row, shares: Mapping[str, float], x: Scale, y: float) -> list[str]:
    """The stages from left to right, with their names; the last, which trains the final net, has a frame."""
    parts, look, at, names = [], look_of(row.pruner), 0.0, list(shares)
    for i, name in enumerate(names):
        begin, end = x(100 * at), x(100 * (at + shares[name]))
        parts.append(bar(begin, y, end - begin - 1.5, ROW - 10, f"f{look.colour} faint"))
        if i == len(names) - 1:
            corners = [(begin, y), (end - 1.5, y), (end - 1.5, y + ROW - 10), (begin, y + ROW - 10)]
            parts.append(path(corners, f"line s{look.colour}", closed=True))
        fits = end - begin - 12 > NARROW * len(name)
        parts.append(text(begin + 6, y + 16, name if fits else " "))
        at += shares[name]
    return parts


def _time(row: Row) -> str:
    seconds = row.train_seconds
    if seconds is None:
        return "unknown"
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36_000
        else f"{seconds / 3600:.1f} h"
    )


def _told(methods: Sequence[Row], spent: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """The title and the sentence: how long the methods search, drawn or not, and who searches longest."""
    if len(methods) < 2:
        return "Where the training budget goes", "Every row has the same budget."
    search = {row.pruner: searched(spent[row.pruner]) for row in methods}
    least, most = min(search, key=search.__getitem__), max(search, key=search.__getitem__)
    if _whole(search[least]) == _whole(search[most]):
        return (
            "Where the training budget goes",
            f"All methods spend {_whole(search[most])} % of it before the last stage.",
        )
    title = f"One budget, spent differently: {_whole(search[least])} to {_whole(search[most])} % goes into the search"
    robust = {row.pruner: percent(row.robust.mean) for row in methods}
    ends = [f"{short(name)} searches {word}" for name, word in ((least, "least"), (most, "most"))]
    said = f"{ends[0]} and keeps {robust[least]} % robust, {ends[1]} and keeps {robust[most]} %."
    return title, f"Of all {len(methods)} methods, {said}"


def _whole(share: float) -> str:
    return f"{100 * share:.0f}"
