"""Robust accuracy against sparsity, and clean against robust accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from statistics import fmean

from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import percent, short_list
from prunebench.leaderboard.roles import PRIMARY
from prunebench.leaderboard.site.charts import intervals
from prunebench.leaderboard.site.charts.common import NAMED, left_out, reference, shown
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
    within,
)

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 530, 420, 48, 330, 40, 370  # RIGHT: where labels begin


def against_sparsity(board: Board) -> Chart | None:
    """Lines with ribbons of 95 % over the sparsities, or intervals at the only one; None without pruned methods."""
    sparsities = sparse(board)
    if not sparsities or not (last := shown(board, sparsities[-1])):
        return None
    title, said = _verdicts(board, sparsities)
    said += left_out(board, None, last)
    if len(sparsities) == 1:
        dense = reference(board)
        parts, height = intervals.drawn([*([dense] if dense else []), *last])
        sentence = f"Marks: mean over seeds; lines: 95 % intervals. {said}"
        return Chart(title, canvas(intervals.WIDTH, height, parts, f"{title}. {sentence}"), sentence)
    sentence = f"Lines: mean over seeds; bands: 95 % intervals. {said}"
    parts = _over(board, sparsities, [row.pruner for row in last])
    return Chart(title, canvas(WIDTH, HEIGHT, parts, f"{title}. {sentence}"), sentence)


def _over(board: Board, sparsities: Sequence[Decimal], names: Sequence[str]) -> list[str]:
    """The rows `names` over the sparsities, beside the level of the unpruned net."""
    lines = {name: [row for row in board.rows if row.pruner == name and row.sparsity] for name in names}
    rows, dense = [row for rows in lines.values() for row in rows], reference(board)
    values = [100 * end for row in [*rows, *([dense] if dense else [])] for end in (row.robust.low, row.robust.high)]
    y = Scale(*within(around(values)), BOTTOM, TOP)
    x = Scale(*around([_place(sparsity) for sparsity in sparsities], 0.05), LEFT, RIGHT)
    parts = left_axis(y, LEFT, "Robust accuracy (AutoAttack), % of test images", RIGHT)
    at = [(_place(sparsity), f"{sparsity:f}") for sparsity in sparsities]
    parts += bottom_axis(x, BOTTOM, "Sparsity (log scale of the kept weights)", at, TOP)
    for name in reversed(names):
        parts += _ribboned(lines[name], x, y)
    ends = [y(100 * lines[name][-1].robust.mean) for name in names]
    labels = [f"{name} {percent(lines[name][-1].robust.mean)}" for name in names]
    if dense:
        level = y(100 * dense.robust.mean)
        parts.append(path([(LEFT, level), (RIGHT, level)], "line dots s0"))
        ends, names = [level, *ends], [dense.pruner, *names]
        labels = [f"{dense.pruner}, unpruned {percent(dense.robust.mean)}", *labels]
    return parts + _labelled(names, labels, ends)


def _place(sparsity: Decimal) -> float:
    return -math.log10(1 - sparsity)


def _ribboned(rows: Sequence[Row], x: Scale, y: Scale) -> list[str]:
    """A line with its band; a single sparsity has an upright bar instead."""
    look, rows = look_of(rows[0].pruner), sorted(rows, key=lambda row: row.sparsity)
    places = [x(_place(row.sparsity)) for row in rows]
    high, low = ([y(100 * getattr(row.robust, end)) for row in rows] for end in ("high", "low"))
    middle = list(zip(places, [y(100 * row.robust.mean) for row in rows], strict=True))
    outline = [*zip(places, high, strict=True), *reversed(list(zip(places, low, strict=True)))]
    parts = [path(outline, f"ribbon f{look.colour}" if len(rows) > 1 else f"line s{look.colour}", closed=True)]
    return [*parts, line(middle, look), *(mark(*point, look) for point in middle)]


def _labelled(names: Sequence[str], labels: Sequence[str], ends: Sequence[float]) -> list[str]:
    """Labels to the right of the lines' ends, each in its colour and led to by a thin line."""
    parts = []
    for name, label, end, place in zip(names, labels, ends, apart(ends, low=TOP - 16, high=BOTTOM), strict=True):
        look = look_of(name)
        parts.append(path([(RIGHT + 2, end), (RIGHT + 16, place)], f"line faint s{look.colour}"))
        parts.append(mark(RIGHT + 24, place, look))
        parts.append(text(RIGHT + 34, place + 4, label))
    return parts


def _verdicts(board: Board, sparsities: Sequence[Decimal]) -> tuple[str, str]:
    """The title and the sentence: who differs from magnitude pruning by the board's tests."""
    tests = [contrast for contrast in board.contrasts if contrast.family == "primary"]
    known = [contrast for contrast in tests if contrast.low is not None]
    better, worse = ([c for c in known if c.verdict == sign] for sign in "+-")
    if not known:
        several = f"sparsities {sparsities[0]:f} to {sparsities[-1]:f}" if len(sparsities) > 1 else f"{sparsities[0]:f}"
        return (
            f"Robust accuracy at {several}",
            f"No method shares enough seeds with {PRIMARY}, so no difference to it can be tested.",
        )
    said = []
    for sparsity in sparsities:
        for word, those in (("above", better), ("below", worse)):
            names = [contrast.pruner for contrast in those if contrast.sparsity == sparsity]
            if names:
                said.append(f"at {sparsity:f}, {short_list(sorted(names))} clearly {word} {PRIMARY}")
    sentence = (
        f"By the board's tests: {'; '.join(said)}." if said else f"The board's tests tell no method from {PRIMARY}."
    )
    if better:
        winners = {contrast.pruner for contrast in better}
        if len(winners) > 1:
            rivals = {contrast.pruner for contrast in known}
            return f"{len(winners)} of {len(rivals)} methods beat {PRIMARY} pruning at some sparsity", sentence
        beaten = short_list([f"{sparsity:f}" for sparsity in sorted({c.sparsity for c in better})])
        return f"{short_list(sorted(winners))} beats {PRIMARY} pruning at {beaten}", sentence
    return f"No method clearly beats plain {PRIMARY} pruning", sentence


def clean_against_robust(board: Board) -> Chart | None:
    """A path per method from the densest to the sparsest nets; None without pruned methods.

    Random pruning is left out: it is so far below the methods that they would be one spot.
    """
    sparsities = sparse(board)
    if not sparsities or not (last := [row for row in shown(board, sparsities[-1]) if row.role == "method"]):
        return None
    lines = {row.pruner: [each for each in board.rows if each.pruner == row.pruner and each.sparsity] for row in last}
    dense = reference(board)
    rows = [row for those in lines.values() for row in those] + ([dense] if dense else [])
    x = Scale(*within(around([100 * row.clean.mean for row in rows])), LEFT, RIGHT)
    y = Scale(*within(around([100 * row.robust.mean for row in rows])), BOTTOM, TOP)
    parts = left_axis(y, LEFT, "Robust accuracy (AutoAttack), %", RIGHT)
    at = [(value, f"{value:g}") for value in ticks(x.low, x.high)]
    parts += bottom_axis(x, BOTTOM, "Clean accuracy, % of test images", at, TOP)
    for name, those in lines.items():
        look = look_of(name)
        points = [
            (x(100 * row.clean.mean), y(100 * row.robust.mean)) for row in sorted(those, key=lambda row: row.sparsity)
        ]
        parts += [line(points, look), *(mark(*point, look) for point in points)]
    names = list(lines)
    ends = [y(100 * max(those, key=lambda row: row.sparsity).robust.mean) for those in lines.values()]
    labels = [
        f"{name} {percent(max(those, key=lambda row: row.sparsity).robust.mean)}" for name, those in lines.items()
    ]
    if dense:
        spot = x(100 * dense.clean.mean), y(100 * dense.robust.mean)
        parts.append(mark(*spot, look_of(dense.pruner)))
        names, ends = [dense.pruner, *names], [spot[1], *ends]
        labels = [f"{dense.pruner}, unpruned {percent(dense.robust.mean)}", *labels]
    parts += _labelled(names, labels, ends)
    title, said = _price(list(lines.values()), sparsities)
    if len(sparsities) > 1:
        said += " A line leads from a method's densest nets to its sparsest, where its label is."
    sentence = f"{said} Up and right is better.{left_out(board, None, last)}"
    return Chart(title, canvas(WIDTH, HEIGHT, parts, f"{title}. {sentence}"), sentence)


def _price(lines: Sequence[Sequence[Row]], sparsities: Sequence[Decimal]) -> tuple[str, str]:
    """What sparsity costs in clean and in robust accuracy, mean over those of the drawn `lines` that span it all."""
    if len(sparsities) < 2:
        return "Clean and robust accuracy", "One mark per method."
    ends = [
        (line[0], line[-1])
        for line in lines
        if (line[0].sparsity, line[-1].sparsity) == (sparsities[0], sparsities[-1])
    ]
    between = f"{sparsities[0]:f} to {sparsities[-1]:f}"
    if not ends:
        return "Clean and robust accuracy", f"No method shown has nets from {between}."
    clean = 100 * fmean(first.clean.mean - last.clean.mean for first, last in ends)
    robust = 100 * fmean(first.robust.mean - last.robust.mean for first, last in ends)
    names = [first.pruner for first, _ in ends]
    who = short_list(names) if len(names) <= NAMED else f"the {len(names)} methods shown at both"
    said = (
        f"From {between}, {who} lose{'s' * (len(ends) == 1)} {clean:.1f} points of clean and {robust:.1f} of robust "
        f"accuracy{' on average' * (len(ends) > 1)}."
    )
    if robust > 1.5 * max(clean, 0.1):
        return "Sparsity costs more robust than clean accuracy", said
    if clean > 1.5 * max(robust, 0.1):
        return "Sparsity costs more clean than robust accuracy", said
    return "Sparsity costs clean and robust accuracy alike", said
