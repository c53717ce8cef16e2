"""Where the kept weights are: densities layer by layer, and how few weights hold the norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import percent, short
from prunebench.leaderboard.site.charts.common import left_out, shown
from prunebench.leaderboard.site.looks import Look, look_of
from prunebench.leaderboard.site.svg import (
    Chart,
    Scale,
    apart,
    bottom_axis,
    canvas,
    line,
    mark,
    path,
    prose,
    text,
    ticks,
)

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 530, 420, 56, 340, 40, 352
LEAST = 1e-4  # a layer that keeps less is drawn here
MOST = 6  # layers whose names fit below the axis
NOTE = "hoyer"  # the note of a record that holds Hoyer's sparsity


def layer_densities(row: Row, records: Mapping[Path, Record]) -> list[float]:
    """The share of weights that each prunable layer keeps, in the net's order, mean over the seeds."""
    nets = [records[Path(path)].net.layers for path in row.records]
    return [fmean(layer.nonzero / layer.size for layer in layers) for layers in zip(*nets, strict=True)]


def densities(board: Board, records: Mapping[Path, Record]) -> Chart | None:
    """A line per method over the layers at the highest sparsity; None for nets of one layer."""
    sparsities = sparse(board)
    if not sparsities or not (rows := shown(board, sparsities[-1])):
        return None
    layers = records[Path(rows[0].records[0])].net.layers
    if len(layers) < 2 or any(len(records[Path(p)].net.layers) != len(layers) for row in rows for p in row.records):
        return None
    kept = {row.pruner: layer_densities(row, records) for row in rows}
    logs = [math.log10(max(LEAST, value)) for values in kept.values() for value in values]
    y = Scale(math.floor(min(logs) - 0.01), 0.0, BOTTOM, TOP)
    x = Scale(0, len(layers) - 1, LEFT + 20, RIGHT - 12)
    parts = _log_axis(y)
    stride = max(1, math.ceil(len(layers) / MOST))
    at = [(float(i), f"{layer.size:,}") for i, layer in enumerate(layers) if i % stride == 0]
    parts += bottom_axis(x, BOTTOM, "Layer, from the image to the logits, by its number of weights", at, TOP)
    ends = []
    for name in reversed(kept):
        look, points = look_of(name), [(x(i), y(math.log10(max(LEAST, value)))) for i, value in enumerate(kept[name])]
        parts.append(line(points, look))
        for point, value in zip(points, kept[name], strict=True):
            parts += [mark(*point, look)] if value else _zero(*point, look)
        ends.append(points[-1][1])
    for name, end, place in zip(reversed(kept), ends, apart(ends, low=TOP - 10, high=BOTTOM), strict=True):
        look = look_of(name)
        parts.append(path([(RIGHT - 6, end), (RIGHT + 12, place)], f"line faint s{look.colour}"))
        parts += [mark(RIGHT + 22, place, look), text(RIGHT + 32, place + 4, name)]
    ratios = [
        max(v[i] for v in kept.values()) / max(LEAST, min(v[i] for v in kept.values())) for i in range(len(layers))
    ]
    at_most = max(range(len(layers)), key=ratios.__getitem__)
    here = {name: values[at_most] for name, values in kept.items()}
    few, many = min(here, key=here.__getitem__), max(here, key=here.__getitem__)
    said = f"{short(few)} keeps {percent(here[few])} % and {short(many)} {percent(here[many])} %."
    title = f"Methods disagree most about layer {at_most + 1} of {len(layers)}"
    sentence = (
        f"Share of weights kept in each layer at sparsity {sparsities[-1]:f}, mean over seeds. In layer {at_most + 1} "
        f"({short(layers[at_most].name)}, {layers[at_most].size:,} weights) {said}"
        f"{left_out(board, sparsities[-1], rows)}"
    )
    if any(value == 0 for values in kept.values() for value in values):
        sentence += " A hollow mark labelled 0 is a layer without weights."
    return Chart(title, canvas(WIDTH, HEIGHT, parts, f"{title}. {sentence}"), sentence)


def _zero(x: float, y: float, look: Look) -> list[str]:
    """A hollow mark labelled 0: a logarithmic scale has no place for it."""
    return [mark(x, y, replace(look, dashed=True)), text(x + 10, y + 4, "0")]


def _log_axis(y: Scale) -> list[str]:
    """An axis of shares in per cent on a logarithmic scale."""
    values = [k * 10.0**power for power in range(int(y.low), 1) for k in (1, 2, 5) if power < 0 or k == 1]
    values = [value for value in values if y.low - 1e-9 <= math.log10(value) <= 0]
    kept = values if len(values) <= 8 else [value for value in values if round(math.log10(value), 6) % 1 == 0]
    parts = [path([(LEFT, y(math.log10(value))), (RIGHT, y(math.log10(value)))], "grid") for value in kept]
    parts += [text(LEFT - 8, y(math.log10(v)) + 4, f"{100 * v:g}", "muted", "end") for v in kept]
    return [*parts, prose(LEFT - 40, TOP - 18, "Weights kept in the layer, %, log scale")]


def spread(board: Board, records: Mapping[Path, Record]) -> Chart | None:
    """Hoyer's sparsity of every row: unpruned nets above, the methods below; None where no record notes it."""
    sparsities = sparse(board)
    dense = [row for row in board.rows if row.role == "reference"]
    rows = dense + (shown(board, sparsities[-1]) if sparsities else [])
    found = [(row, value) for row in rows if (value := hoyer(row, records)) is not None]
    if len(found) < 2:
        return None
    found.sort(key=lambda pair: (pair[0].sparsity, -pair[1]))
    bottom = TOP + 30 * len(found)
    left = 200  # a shortened name fits beside it
    x = Scale(0, 1, left, 490)
    at = [(value, f"{value:g}") for value in ticks(x.low, x.high)]
    parts = bottom_axis(x, bottom, "Hoyer's sparsity: 0 = all weights equal, 1 = a single one", at, TOP - 8)
    for i, (row, value) in enumerate(found):
        y, look = TOP + 30 * (i + 0.5), look_of(row.pruner)
        parts.append(text(left - 12, y + 4, row.pruner, "", "end"))
        parts.append(path([(left, y), (x(value), y)], f"line s{look.colour}"))
        parts += [mark(x(value), y, look), text(x(value) + 10, y + 4, f"{value:.2f}", "strong")]
    title, sentence = _told([pair for pair in found if not pair[0].sparsity], found)
    sentence += left_out(board, sparsities[-1], [row for row, _ in found if row.sparsity]) if sparsities else ""
    return Chart(title, canvas(WIDTH, bottom + 50, parts, f"{title}. {sentence}"), sentence)


def hoyer(row: Row, records: Mapping[Path, Record]) -> float | None:
    """Hoyer's sparsity (2004, JMLR 5, p. 1457) of all prunable weights, mean over seeds; None unless all note it."""
    values = [records[Path(path)].notes.get(NOTE) for path in row.records]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    finite = len(numbers) == len(values) and all(math.isfinite(value) for value in numbers)
    return fmean(numbers) if finite else None


def _told(dense: list[tuple[Row, float]], found: list[tuple[Row, float]]) -> tuple[str, str]:
    sparsest = found[-1][0].sparsity
    said = f"From the records' notes, mean over seeds; unpruned nets above, pruned ones at {sparsest:f}."
    pruned = [value for row, value in found if row.sparsity]
    if pruned:
        said += f" Pruned nets lie between {min(pruned):.2f} and {max(pruned):.2f}."
    if len(dense) < 2:
        return "How few weights hold the norm", said
    (most, high), (least, low) = dense[0], dense[-1]
    names = short(most.pruner), short(least.pruner)
    return f"Of the unpruned nets, {names[0]} has the sparsest weights: {high:.2f}, {names[1]} {low:.2f}", said
