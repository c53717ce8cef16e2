"""Which image survives which method: a strip per method, an image in the same place on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.images import Fates, agreement, fates
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import percent
from prunebench.leaderboard.site.charts.common import left_out, reference, shown
from prunebench.leaderboard.site.looks import look_of
from prunebench.leaderboard.site.svg import Chart, bar, canvas, mark, path, prose, text

WIDTH, LEFT, RIGHT, TOP, ROW, STRIP = 1240, 190, 1150, 62, 30, 20
COLUMNS = 480  # a strip has no more; of more images, neighbours share a column
SHADES = 4  # steps from no seed to every seed
ALIKE = 0.02  # two shares of agreement that differ by less are called the same


def of_board(board: Board, records: Mapping[Path, Record], source: Path) -> Chart | None:
    """A strip per row at the highest sparsity, and one of the unpruned net; None for fewer than two methods."""
    sparsities, dense = sparse(board), reference(board)
    there = shown(board, sparsities[-1]) if sparsities else []
    rows = ([dense] if dense else []) + there
    found = [known for row in rows if (known := fates(row, records, source)) is not None]
    methods = [of for of in found if of.row.role == "method"]
    if len(methods) < 2:
        return None
    # From the image that most nets get right to the one that fewest do; ties in the order of the test set.
    order = np.argsort(-np.mean([of.share for of in methods], axis=0), kind="stable")
    always, never = (int(np.sum(np.all([of.share == end for of in methods], axis=0))) for end in (1.0, 0.0))
    bottom = TOP + ROW * len(found)
    parts = _borders(board.n, always, never, bottom)
    for i, of in enumerate(found):
        parts += _strip(of, order, TOP + ROW * i)
    parts.append(prose((LEFT + RIGHT) / 2, bottom + 22, _AXIS, "muted", "middle"))
    title, said = _told(methods)
    sentence = (
        f"{said} {_held(board.n)} on all strips, at {sparsities[-1]:f}; the fuller its colour, the more often they "
        f"survive over the seeds. Of {board.n} images {always} survive in every net of these methods, {never} in "
        f"none.{left_out(board, sparsities[-1], [of.row for of in methods])}"
    )
    return Chart(title, canvas(WIDTH, bottom + 34, parts, f"{title}. {sentence}"), sentence, wide=True)


_AXIS = "Test images, from the one that most nets get right under attack to the one that fewest do"


def _held(n: int) -> str:
    """How many of `n` images a column holds, as the beginning of a sentence."""
    each, more = divmod(n, min(COLUMNS, n))
    if each == 1 and not more:
        return "A column is an image, the same one"
    return f"A column is {each}{f' or {each + 1}' * bool(more)} images, the same ones"


def _borders(n: int, always: int, never: int, bottom: float) -> list[str]:
    """Lines between the images that all nets, some and no nets keep, with the names of these three parts."""
    width = (RIGHT - LEFT) / n
    ends = [LEFT, LEFT + always * width, RIGHT - never * width, RIGHT]
    parts = [prose(RIGHT + 14, TOP - 34, "Robust, %", "muted")]
    names = (f"{always} survive in every net", f"{n - always - never} in some", f"{never} in none")
    for name, begin, end in zip(names, ends, ends[1:], strict=False):
        parts += [path([(end, TOP - 26), (end, bottom)], "line zero")] * (end < RIGHT)
        if end - begin > 7.5 * len(name):
            parts.append(prose((begin + end) / 2, TOP - 34, name, "strong", "middle"))
    return parts


def _strip(of: Fates, order: np.ndarray, y: float) -> list[str]:
    """The name, the images, and the robust accuracy of a row; neighbours of one shade are one stroke."""
    look, row = look_of(of.row.pruner), of.row
    n, columns = len(order), min(COLUMNS, len(order))
    edges = np.arange(columns + 1) * n // columns  # a column is as wide as the images in it, so that borders match
    shares = np.array([np.mean(column) for column in np.split(of.share[order], edges[1:-1])])
    levels = np.rint(SHADES * shares).astype(int)
    some = (shares > 0) & (shares < 1)  # neither blank nor full
    levels[some] = np.clip(levels[some], 1, SHADES - 1)
    places, middle = LEFT + (RIGHT - LEFT) / n * edges, y + STRIP / 2
    starts = np.flatnonzero(np.diff(levels, prepend=-1))
    runs = list(zip(starts, np.append(starts[1:], len(levels)), strict=True))
    parts = [mark(LEFT - 172, middle, look), text(LEFT - 160, middle + 4, _named(row))]
    parts.append(bar(LEFT, y, RIGHT - LEFT, STRIP, "frame"))
    for level in range(1, SHADES + 1):
        at = [(places[a], places[b]) for a, b in runs if levels[a] == level]
        strokes = [f"M{begin:.1f} {middle:.1f}h{end - begin:.1f}" for begin, end in at]
        kind = f'class="s{look.colour}" stroke-width="{STRIP}" opacity="{level / SHADES:g}"'
        parts += [f'<path {kind} d="{"".join(strokes)}"/>'] * bool(strokes)
    return [*parts, text(RIGHT + 14, middle + 4, percent(row.robust.mean), "strong")]


def _named(row: Row) -> str:
    return row.pruner if row.sparsity else f"{row.pruner}, unpruned"


def _told(methods: Sequence[Fates]) -> tuple[str, str]:
    """Whether two methods agree on as many images as two seeds of one method do.

    Methods that differ in accuracy must disagree, so less agreement does not mean that each loses images of its own.
    """
    own, cross = agreement(methods)
    if own is None or cross is None:
        return "Which images survive which method", "With one seed, no image can be called a method's own."
    said = f"Two nets of one method agree on {percent(own)} % of the images, nets of two methods on {percent(cross)} %."
    if own - cross < ALIKE:
        return "The methods shown lose the same images", said
    return "Two seeds agree on more images than two methods", said
