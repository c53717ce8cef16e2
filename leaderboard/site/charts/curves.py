"""Robust overfitting: how far the last epoch is below the best on validation images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board
from prunebench.leaderboard.overfitting import Course, course
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import short
from prunebench.leaderboard.site.charts.common import percent, reference, shown
from prunebench.leaderboard.site.looks import look_of
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

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 530, 420, 48, 350, 40, 370


def of_board(board: Board, records: Mapping[Path, Record]) -> Chart | None:
    """The validation accuracy of the last training, epoch by epoch; None where no record holds a curve."""
    sparsities, dense = sparse(board), reference(board)
    rows = ([dense] if dense else []) + (shown(board, sparsities[-1]) if sparsities else [])
    found = [(row, known) for row in rows if (known := course(row, records)) is not None]
    if not found:
        return None
    x = Scale(0, max(of.epochs[-1] for _, of in found), LEFT, RIGHT)
    y = Scale(*around([100 * value for _, of in found for value in of.robust]), BOTTOM, TOP)
    parts = left_axis(y, LEFT, "PGD accuracy on validation images, %", RIGHT)
    parts += bottom_axis(x, BOTTOM, "Epoch of the last training", [(v, f"{v:g}") for v in ticks(0, x.high)], TOP)
    ends = []
    for row, of in found:
        points = [(x(epoch), y(100 * value)) for epoch, value in zip(of.epochs, of.robust, strict=True)]
        parts += [line(points, look_of(row.pruner)), *(mark(*point, look_of(row.pruner)) for point in points)]
        ends.append(points[-1])
    for (row, _), end, place in zip(found, ends, apart([y for _, y in ends], low=TOP - 10, high=BOTTOM), strict=True):
        look = look_of(row.pruner)
        parts.append(path([end, (RIGHT + 12, place)], f"line faint s{look.colour}"))
        parts += [mark(RIGHT + 22, place, look), text(RIGHT + 32, place + 4, row.pruner)]
    title, sentence = _told([(row.pruner, of) for row, of in found])
    if len(found) < len(rows):
        sentence += f" The records of {len(rows) - len(found)} other rows hold no curve."
    return Chart(title, canvas(WIDTH, HEIGHT, parts, f"{title}. {sentence}"), sentence)


def _told(found: list[tuple[str, Course]]) -> tuple[str, str]:
    name, of = max(found, key=lambda pair: pair[1].lost)
    said = (
        f"Most is lost by {short(name)}: {percent(max(of.robust))} % at its best epoch, {percent(of.robust[-1])} % at "
        "the last. A best epoch is picked after the fact, so a small loss is to be expected without overfitting."
    )
    if of.lost < 0.01:
        return "No robust overfitting: the last epoch is as good as the best", said
    return f"Robust overfitting: {short(name)} ends {100 * of.lost:.1f} points below its best epoch", said
