"""Robust overfitting: how far the last epoch is below the best on validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.overfitting import Course, course, losses
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import listed, percent, short, short_list
from prunebench.leaderboard.site.charts.common import reference, shown
from prunebench.leaderboard.site.looks import Look, look_of
from prunebench.leaderboard.site.svg import (
    Chart,
    Scale,
    apart,
    around,
    bottom_axis,
    canvas,
    left_axis,
    line,
    mark,
    path,
    text,
    ticks,
)

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 530, 420, 48, 330, 40, 370


def of_board(board: Board, records: Mapping[Path, Record]) -> Chart | None:
    """The validation accuracy of the last training, epoch by epoch; None where no record holds a curve."""
    sparsities, dense = sparse(board), reference(board)
    rows = ([dense] if dense else []) + (shown(board, sparsities[-1]) if sparsities else [])
    found = [(row, known) for row in rows if (known := course(row, records)) is not None]
    if not found:
        return None
    x = Scale(0, max(of.epochs[-1] for _, of in found), LEFT, RIGHT)
    fitted = [of for row, of in found if row.role != "control"] or [of for _, of in found]
    y = Scale(*around([100 * value for of in fitted for value in of.robust]), BOTTOM, TOP)
    parts = left_axis(y, LEFT, "PGD accuracy on validation images, %", RIGHT)
    parts += bottom_axis(x, BOTTOM, "Epoch of the last training", [(v, f"{v:g}") for v in ticks(0, x.high)], TOP)
    for row, of in found:
        parts += _drawn(of, x, y, look_of(row.pruner))
    ends = [(x(of.epochs[-1]), y(100 * of.robust[-1])) for _, of in found]
    for (row, of), end, place in zip(found, ends, apart([y for _, y in ends], low=TOP - 10, high=BOTTOM), strict=True):
        look = look_of(row.pruner)
        parts.append(path([end, (RIGHT + 12, place)], f"line faint s{look.colour}"))
        label = f"{row.pruner} {percent(of.robust[-1])}"
        parts += [mark(RIGHT + 22, place, look), text(RIGHT + 32, place + 4, label)]
    title, said = _told([(row, losses(row, records)) for row, _ in found])
    where = listed(["unpruned"] * bool(dense) + [f"at {sparsity:f}" for sparsity in sparsities[-1:]])
    sentence = f"Lines: mean over seeds, {where}. {said}"
    if any(not y.low <= 100 * v <= y.high for _, of in found for v in of.robust):
        sentence += " A line along the edge without marks lies outside the figure."
    if without := [row.pruner for row in rows if row not in [drawn for drawn, _ in found]]:
        sentence += f" Not all records of {short_list(without)} hold a curve of the same epochs."
    return Chart(title, canvas(WIDTH, HEIGHT, parts, f"{title}. {sentence}"), sentence)


def _drawn(of: Course, x: Scale, y: Scale, look: Look) -> list[str]:
    """The line of a course, with marks where it is inside the figure; outside it follows the edge."""
    points = [(x(epoch), y(100 * value)) for epoch, value in zip(of.epochs, of.robust, strict=True)]
    inside = [point for point, value in zip(points, of.robust, strict=True) if y.low <= 100 * value <= y.high]
    return [line(points, look), *(mark(*point, look) for point in inside)]


def _told(found: Sequence[tuple[Row, Sequence[float]]]) -> tuple[str, str]:
    """The title and the sentence on the row that loses most; `found`: the losses of each row's seeds."""
    row, lost = max(found, key=lambda pair: fmean(pair[1]))
    name, points = short(row.pruner), percent(fmean(lost))
    said = (
        f"Of these rows {name} loses most: {points} points from the best epoch of those validated to the last, each "
        "seed by itself. A best epoch is picked after the fact, so a small loss is to be expected without overfitting."
    )
    if fmean(lost) < 0.01:
        return "No robust overfitting: the last epoch is as good as the best", said
    return f"Robust overfitting: {name} ends {points} points below its best epoch", said
