"""Is a ticket a ticket? The overlap of masks between seeds and between methods, as multiples of chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board
from prunebench.leaderboard.nets import Mask, mask_of
from prunebench.leaderboard.overlap import NEAR, Agreement, agreements
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import short, short_list
from prunebench.leaderboard.roles import RANDOM
from prunebench.leaderboard.site.charts.common import left_out, shown
from prunebench.leaderboard.site.looks import look_of
from prunebench.leaderboard.site.svg import Chart, bar, canvas, mark, prose, text

CELL, LEFT, TOP, GAP = 46, 176, 66, 24
FULL = 20.0  # times chance at which a cell has its full colour; shades are logarithmic
DARKEST = 0.55  # opacity of a full cell, on which text can still be read


def overlaps(
    board: Board, sparsity: Decimal, records: Mapping[Path, Record], source: Path, labels: Sequence[str]
) -> list[Agreement]:
    """The agreements of the rows `labels` at `sparsity`, from the nets beside the records below `source`."""
    rows: dict[str, dict[int, Mask]] = {}
    for row in board.rows:
        if row.sparsity == sparsity and row.pruner in labels:
            found = {records[Path(path)].job.seed: mask_of(source / path, records[Path(path)]) for path in row.records}
            rows[row.pruner] = {seed: mask for seed, mask in found.items() if mask is not None}
    return agreements({label: rows[label] for label in labels if rows.get(label)})


def of_board(board: Board, records: Mapping[Path, Record], source: Path) -> Chart | None:
    """A triangle of cells per sparsity, at most the last three; None where no two nets can be compared."""
    sparsities = sparse(board)[-3:]
    labels = [row.pruner for row in shown(board, sparsities[-1])] if sparsities else []
    found = [(sparsity, overlaps(board, sparsity, records, source, labels)) for sparsity in sparsities]
    found = [(sparsity, those) for sparsity, those in found if those]
    if not found:
        return None
    there = {label for _, those in found for each in those for label in (each.ours, each.theirs)}
    labels = [label for label in labels if label in there]
    parts = _names(labels)
    for i, (sparsity, those) in enumerate(found):
        parts += _triangle(those, labels, LEFT + i * (CELL * len(labels) + GAP), f"Sparsity {sparsity:f}")
    width = LEFT + len(found) * (CELL * len(labels) + GAP)
    title, sentence = _told(*found[-1])
    cells = len(found) * len(labels) * (len(labels) + 1) // 2
    if sum(len(those) for _, those in found) < cells:
        sentence += " A cell is empty where there are no two seeds of the method, or no seed with nets of both methods."
    sentence += left_out(board, sparsities[-1], [row for row in board.rows if row.pruner in labels])
    svg = canvas(width, TOP + CELL * len(labels) + 10, parts, f"{title}. {sentence}")
    return Chart(title, svg, sentence, wide=width > 620)


def _names(labels: Sequence[str]) -> list[str]:
    """The rows' marks and names, on the left."""
    parts = []
    for i, label in enumerate(labels):
        y = TOP + CELL * (i + 0.5)
        parts += [mark(14, y, look_of(label)), text(26, y + 4, label)]
    return parts


def _triangle(found: Sequence[Agreement], labels: Sequence[str], left: float, head: str) -> list[str]:
    by_pair = {frozenset((each.ours, each.theirs)): each for each in found}
    parts = [prose(left, TOP - 40, head, "strong")]
    for i, label in enumerate(labels):
        y = TOP + CELL * i
        parts.append(mark(left + CELL * (i + 0.5), TOP - 14, look_of(label)))
        for j, other in enumerate(labels[: i + 1]):
            each = by_pair.get(frozenset((label, other)))
            if each is not None:
                parts += _cell(left + CELL * j, y, each.ratio, own=i == j)
    return parts


def _cell(x: float, y: float, ratio: float, *, own: bool) -> list[str]:
    """A cell, darker the more two masks agree; those on the diagonal, between seeds, have a frame."""
    share = DARKEST * min(1.0, math.log(max(1.0, ratio)) / math.log(FULL))
    shade = f'<rect x="{x:.1f}" y="{y:.1f}" width="{CELL - 3}" height="{CELL - 3}" class="f2" opacity="{share:.2f}"/>'
    frame = bar(x, y, CELL - 3, CELL - 3, "frame s1" if own else "frame")
    words = text(x + (CELL - 3) / 2, y + CELL / 2 + 3, f"{ratio:.1f}", "", "middle")
    return [shade, frame, words]


def _told(sparsity: Decimal, found: Sequence[Agreement]) -> tuple[str, str]:
    own = [each for each in found if not each.same_seed and each.ours != RANDOM]
    cross = [each for each in found if each.same_seed and RANDOM not in (each.ours, each.theirs)]
    said = (
        f"Overlap (Jaccard) of kept positions, as a multiple of chance at the same layer densities: 1.0 is chance. "
        f"Framed diagonal: two seeds of one method; other cells: two methods at the same seed. At {sparsity:f}"
    )
    facts = []
    if own:
        most = max(own, key=lambda each: each.ratio)
        facts.append(f"two seeds of a method overlap {_range(own)} times chance, most of all {short(most.ours)}")
    if cross:
        most = max(cross, key=lambda each: each.ratio)
        facts.append(
            f"two methods at one seed {_range(cross)} times, most of all {short_list([most.ours, most.theirs])}"
        )
    sentence = f"{said}, {'; '.join(facts)}." if facts else f"{said}, there is nothing but random pruning."
    seeds, methods = ([each.ratio for each in those] for those in (own, cross))
    if seeds and methods and max(seeds) <= 1 + NEAR < max(methods):
        return "A ticket belongs to its seed: masks agree within a seed, and by chance between seeds", sentence
    if seeds and max(seeds) > 1 + NEAR:
        return f"Masks of different seeds agree up to {max(seeds):.1f} times chance", sentence
    if seeds and methods:
        return "Masks agree as by chance, between seeds and between methods", sentence
    return "Do masks agree?", sentence


def _range(those: Sequence[Agreement]) -> str:
    low, high = (f"{end(each.ratio for each in those):.1f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"
