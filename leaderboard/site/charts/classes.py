"""Which classes lose robustness when a net becomes sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board
from prunebench.leaderboard.classes import ByClass, by_class, hit_hardest
from prunebench.leaderboard.contrasts import ALPHA
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import listed, percent, short, short_list
from prunebench.leaderboard.site.charts.common import left_out, reference, shown
from prunebench.leaderboard.site.looks import look_of
from prunebench.leaderboard.site.svg import Chart, Scale, around, bottom_axis, canvas, mark, path, prose, text, ticks

WIDTH, LEFT, RIGHT, ROW, NAMES = 530, 50, 510, 30, 3  # NAMES: in a line of the legend
MOST = 40  # classes in a chart


def of_board(board: Board, records: Mapping[Path, Record], source: Path) -> Chart | None:
    """A line of marks per class: the unpruned net, and the methods at the highest sparsity; None without outcomes.

    Methods with a net that answers one class for every image are left out.
    """
    sparsities, dense = sparse(board), reference(board)
    if not sparsities or dense is None or (before := by_class(dense, records, source)) is None:
        return None
    rows = [row for row in shown(board, sparsities[-1]) if row.role == "method"]
    found = [of for row in rows if (of := by_class(row, records, source)) is not None]
    after = [of for of in found if not of.constant]
    classes = [i for i, images in enumerate(before.images) if images][:MOST]
    if not after or not classes:
        return None
    means = {i: fmean(of.robust[i] for of in after) for i in classes}
    ordered = sorted(classes, key=lambda i: before.robust[i] - means[i], reverse=True)
    top = 48 + 20 * math.ceil((1 + len(after)) / NAMES)
    bottom = top + ROW * len(ordered)
    values = [100 * of.robust[i] for of in (before, *after) for i in classes]
    x = Scale(*around(values, 0.04), LEFT, RIGHT)
    at = [(value, f"{value:g}") for value in ticks(x.low, x.high)]
    parts = bottom_axis(x, bottom, "Robust accuracy within the class, %", at, top - 6)
    parts.append(prose(4, top - 12, "Class"))
    for i, number in enumerate(ordered):
        y = top + ROW * (i + 0.5)
        parts.append(text(LEFT - 22, y + 4, str(number), "strong", "end"))
        parts.append(path([(x(100 * means[number]), y), (x(100 * before.robust[number]), y)], "line s1"))
        parts += [mark(x(100 * of.robust[number]), y, look_of(of.row.pruner)) for of in reversed(after)]
        parts.append(mark(x(100 * before.robust[number]), y, look_of(dense.pruner)))
    parts += _legend([dense.pruner, *(of.row.pruner for of in after)])
    title, said = _told(hit_hardest(before, after))
    figures = [
        f"class {i} from {percent(before.robust[i])} % to {percent(means[i])} %" for i in (ordered[0], ordered[-1])
    ]
    sentence = (
        f"{said} From {short(dense.pruner)}, unpruned, to the mean of the methods at {sparsities[-1]:f}, to which grey "
        f"lines lead: {listed(figures)}.{_constant(found)}{left_out(board, sparsities[-1], rows)}"
    )
    return Chart(title, canvas(WIDTH, bottom + 50, parts, f"{title}. {sentence}"), sentence)


def _told(worst: int | None) -> tuple[str, str]:
    """The title names a class only if a test finds that it loses more than the others."""
    order = "Classes from the largest loss of robust accuracy to the smallest."
    if worst is None:
        return "Robust accuracy by class", f"{order} No test finds that one loses more than the others."
    said = f"By a t-test paired by seed (Holm, {100 * ALPHA:g} %), class {worst} loses more than the others."
    return f"Class {worst} loses more robust accuracy than the others", f"{order} {said}"


def _constant(found: Sequence[ByClass]) -> str:
    """A sentence on the methods that are left out because a net of theirs ignores its images; empty without any."""
    names = [of.row.pruner for of in found if of.constant]
    return f" Left out, with a net that answers one class for every image: {short_list(names)}." if names else ""


def _legend(names: list[str]) -> list[str]:
    """The marks and their names, in lines above the chart."""
    parts = []
    for i, name in enumerate(names):
        x, y = LEFT + (RIGHT - LEFT) / NAMES * (i % NAMES), 14 + 20 * (i // NAMES)
        parts += [mark(x, y, look_of(name)), text(x + 9, y + 4, name)]
    return parts
