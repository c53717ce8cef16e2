"""Rows -> plotly figures; colours are series numbers, which the page's theme resolves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import plotly.graph_objects as go

from prunebench.bench import stats
from prunebench.bench.record import Record
from prunebench.bench.schema import exact
from prunebench.leaderboard.board import Board, Rate, Row
from prunebench.leaderboard.render.text import with_interval
from prunebench.leaderboard.site.figure import SERIES, SYMBOLS, Plot, figure_of, literal, plain, short
from prunebench.leaderboard.site.looks import look_of

POINTS = 200  # of a continuous curve, half a per cent of the images each
APART = 0.012  # decades of weights between two pruners at the same sparsity, to keep their intervals apart


Distances = Sequence[np.ndarray | None]  # for each row or seed: the smallest perturbation found for each image
_CLOSEST = "The attack: the smallest perturbation that a minimum-norm attack or AutoAttack found for each image."
_PGD = "The attack: PGD-20 at each eps, which is weaker than AutoAttack."
REACH = 4  # times the protocol's eps, where the axis of a security curve ends: beyond, few nets keep any image


def of_board(board: Board, far: Distances) -> list[Plot]:
    """The plots of a board that can be explored; `far`: the distances of each row, None where not all seeds have."""
    looks = _looks(board)
    return [*_curves(board, far), *_slack(board, looks), _attacks(board)]


def of_row(board: Board, row: Row, records: Sequence[Record], far: Distances) -> Plot | None:
    """The security curve of each seed of `row`, None if no seed has one; `far`: the distances of each seed."""
    lines = []
    for i, (record, distances) in enumerate(zip(records, far, strict=True)):
        points = {"0": record.score.clean} | {point.eps: point.robust for point in record.score.curve}
        lines.append(_Line(f"seed {record.job.seed}", points, distances, i))
    sentence = f"Images still correct as eps grows, in per cent, for each seed of {row.pruner} at {row.sparsity:f}."
    return _security("Security curve", sentence, board, lines)


def _looks(board: Board) -> dict[str, int]:
    return {pruner: i for i, pruner in enumerate(sorted({row.pruner for row in board.rows}))}


def _hover(row: Row) -> str:
    return (
        f"<b>{literal(row.pruner)}</b> at {row.sparsity:f}<br>robust {with_interval(row.robust)} %<br>"
        f"clean {with_interval(row.clean)} %<br>{row.train_passes / 1e6:.1f} M passes, seeds: {len(row.seeds)}"
    )


def _error(rates: Sequence[Rate]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, 100 * (rate.high - rate.mean)) for rate in rates],
        "arrayminus": [max(0.0, 100 * (rate.mean - rate.low)) for rate in rates],
        "thickness": 1.2,
        "width": 3,
    }


def _trace(rows: Sequence[Row], x: Sequence[float], look: int) -> go.Scatter:
    """The robust accuracy of the rows of one pruner over `x`."""
    return go.Scatter(
        x=list(x),
        y=[100 * row.robust.mean for row in rows],
        error_y=_error([row.robust for row in rows]),
        mode="lines+markers",
        name=short(rows[0].pruner),
        hovertext=[_hover(row) for row in rows],
        hoverinfo="text",
        line={"width": 1.4, "dash": "dash" if look_of(rows[0].pruner).dashed else "solid"},
        marker={"size": 8, "symbol": SYMBOLS[look % len(SYMBOLS)]},
        meta={"series": look_of(rows[0].pruner).colour},
    )


def _by_pruner(board: Board, looks: Mapping[str, int]) -> list[tuple[int, list[Row]]]:
    return [(look, [row for row in board.rows if row.pruner == pruner]) for pruner, look in looks.items()]


def _along(rows: Sequence[Row], looks: Mapping[str, int]) -> tuple[Callable[[Row, int], float], dict[str, Any]]:
    """Where a row with a look lies along an axis of sparsities, and that axis with the sparsities of `rows`."""

    def place(row: Row, look: int) -> float:
        beside = (look - (len(looks) - 1) / 2) * APART if row.sparsity else 0.0
        return -math.log10(1 - row.sparsity) + beside

    sparsities = sorted({row.sparsity for row in rows})
    return place, {
        "title": "Sparsity, log scale of the kept weights",
        "tickvals": [-math.log10(1 - sparsity) for sparsity in sparsities],
        "ticktext": [f"{sparsity:f}" for sparsity in sparsities],
    }


def _slack(board: Board, looks: Mapping[str, int]) -> list[Plot]:
    """How much of AutoAttack's number the best-known number takes away; no plot if no row has that number."""
    known = [row for row in board.rows if row.best is not None]
    if not known:
        return []
    place, axis = _along(known, looks)
    traces = []
    for look, rows in _by_pruner(board, looks):
        here = [(row, _lost(row, row.best, board.n)) for row in rows if row.best is not None]
        if not here:
            continue
        rates = [rate for _, rate in here]
        trace = _trace([row for row, _ in here], [place(row, look) for row, _ in here], look)
        trace.y, trace.error_y = [100 * rate.mean for rate in rates], _error(rates)
        trace.hovertext = [f"{_hover(row)}<br>slack {with_interval(rate)} points" for row, rate in here]
        traces.append(trace)
    figure = figure_of(traces, axis, {"title": "Slack, points", "rangemode": "tozero"})
    sentence = (
        "Slack: the points of robust accuracy that AutoAttack reports and stronger attacks take away, with 95 % "
        "intervals over seeds. At 0, the best-known number is AutoAttack's."
    )
    return [Plot("AutoAttack and best known", sentence, plain(figure))]


def _lost(row: Row, best: Rate, n: int) -> Rate:
    """The share of the images that survive AutoAttack only; its interval is of the t-test paired by seed, and >= 0."""
    lost = tuple(ours - theirs for ours, theirs in zip(row.robust.counts, best.counts, strict=True))
    test = stats.by_seed(lost, n)
    gap = sum(lost) / (len(lost) * n)
    low, high = (gap, gap) if test.low is None or test.high is None else (max(0.0, test.low), test.high)
    return Rate(lost, gap, low, high, "paired t")


def _attacks(board: Board) -> Plot:
    names = [f"{short(row.pruner, 16)} {row.sparsity:f}" for row in board.rows]
    counts = [{"clean": row.clean.mean * board.n} | row.survived for row in board.rows]
    traces = []
    for i, attack in enumerate(("clean", *board.attacks)):
        shares = [100 * count[attack] / board.n for count in counts]
        label = attack if attack == "clean" else f"after {attack}"
        hover = [f"{name}<br>{literal(label)}: {share:.1f} %" for name, share in zip(names, shares, strict=True)]
        traces.append(
            go.Scatter(
                x=shares,
                y=list(range(len(names))),
                mode="markers",
                name=literal(label),
                hovertext=hover,
                hoverinfo="text",
                marker={"size": 9, "symbol": SYMBOLS[i % len(SYMBOLS)]},
                meta={"series": i % SERIES},
            )
        )
    rows = {"tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed", "automargin": True}
    figure = figure_of(traces, {"title": "Images still correct, %"}, rows)
    figure.update_layout(height=max(340, 80 + 22 * len(names)))
    sentence = "Images still correct after each attack, in per cent, one line per row."
    return Plot("Survivors, attack by attack", sentence, plain(figure), wide=True)


@dataclass(frozen=True)
class _Line:
    """What is known of a net or a row: images still correct by eps, and the images' distances, None if unknown."""

    name: str
    points: Mapping[str, float]
    distances: np.ndarray | None
    colour: int
    dash: str = "solid"


def _curves(board: Board, far: Distances) -> list[Plot]:
    """A plot per sparsity, each with the unpruned net for comparison."""
    plots = []
    sparsities = sorted({row.sparsity for row in board.rows})
    for sparsity in [s for s in sparsities if s] or sparsities:
        lines = []
        for row, distances in zip(board.rows, far, strict=True):
            if row.sparsity not in (sparsity, Decimal(0)):
                continue
            points, look = {"0": row.clean.mean * board.n} | row.curve, look_of(row.pruner)
            if row.sparsity == sparsity:
                dash = "dash" if look.dashed else "solid"
                lines.append(_Line(row.pruner, points, distances, look.colour, dash))
            else:
                lines.append(_Line(f"{row.pruner}, {row.sparsity:f}", points, distances, look.colour, "dot"))
        sentence = f"Images still correct as eps grows, in per cent, for the pruners at sparsity {sparsity:f}."
        plots.append(_security(f"Security curves at sparsity {sparsity:f}", sentence, board, lines))
    return [plot for plot in plots if plot is not None]


def _security(title: str, sentence: str, board: Board, lines: Sequence[_Line]) -> Plot | None:
    """The curves of `lines`, all under one attack: two attacks may differ by more than two nets do.

    The closest points found, if they are known for every line, else PGD, without the lines that it did not attack.
    None without any curve.
    """
    known = [line for line in lines if line.distances is not None or len(line.points) > 1]
    if not known:
        return None
    far = [line.distances for line in known if line.distances is not None]
    if len(far) == len(known):
        attack, traces = (
            _CLOSEST,
            [_continuous(line.name, at, line.colour) for line, at in zip(known, far, strict=True)],
        )
    else:
        known = [line for line in known if len(line.points) > 1]
        attack, traces = _PGD, [_curve(line.name, line.points, board.n, line.colour) for line in known]
    for line, trace in zip(known, traces, strict=True):
        trace.line.dash = line.dash
    return Plot(title, f"{sentence} {attack}", _curve_figure(board, traces))


def _curve(name: str, points: Mapping[str, float], n: int, look: int) -> go.Scatter:
    drawn = {eps: (size, 100 * count / n) for eps, (size, count) in _drawable(points).items()}
    hover = [f"<b>{literal(name)}</b><br>eps {literal(eps)}: {share:.1f} %" for eps, (_, share) in drawn.items()]
    return go.Scatter(
        x=[size for size, _ in drawn.values()],
        y=[share for _, share in drawn.values()],
        mode="lines+markers",
        name=short(name),
        hovertext=hover,
        hoverinfo="text",
        line={"width": 1.6},
        marker={"size": 7, "symbol": SYMBOLS[look % len(SYMBOLS)]},
        meta={"series": look % SERIES},
    )


def _continuous(name: str, distances: np.ndarray, look: int) -> go.Scatter:
    """The share of images whose distance is above eps, as steps at up to POINTS eps, each exact."""
    ordered = np.sort(distances)
    finite = ordered[np.isfinite(ordered)]
    ranks = np.unique(np.linspace(0, len(finite) - 1, min(POINTS, len(finite))).round().astype(int))
    eps = np.concatenate([[0.0], finite[ranks]])
    shares = 100 * (1 - np.searchsorted(ordered, eps, side="right") / len(ordered))
    hover = [f"<b>{literal(name)}</b><br>eps {at:.4g}: {share:.1f} %" for at, share in zip(eps, shares, strict=True)]
    return go.Scatter(
        x=eps.tolist(),
        y=shares.tolist(),
        mode="lines",
        name=short(name),
        hovertext=hover,
        hoverinfo="text",
        line={"width": 1.6, "shape": "hv"},
        meta={"series": look % SERIES},
    )


def _curve_figure(board: Board, traces: Sequence[go.Scatter]) -> Mapping[str, Any]:
    figure = figure_of(traces, {"title": "eps"}, {"title": "Images still correct, %", "rangemode": "tozero"})
    if board.rules is not None:
        threat = board.rules.threat
        figure.add_vline(x=threat.radius, line={"dash": "dot", "width": 1}, name="reference")
        end = min(REACH * threat.radius, max(x for trace in traces for x in trace.x))
        figure.update_xaxes(
            range=[-0.02 * end, 1.02 * end], title=f"eps ({threat.norm}; dotted: the protocol's {threat.eps})"
        )
    return plain(figure)


def _drawable(points: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """The points whose eps fits a float, by eps: its value and the count."""
    return {eps: (float(exact(eps)), count) for eps, count in points.items() if exact(eps) < 1e9}
