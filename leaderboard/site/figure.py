"""What all plots share: a plotly figure without a theme, its symbols, and texts that plotly takes literally."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from prunebench.leaderboard.render.text import clean

SERIES = 8  # colours per theme
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "hexagon", "pentagon", "x")


@dataclass(frozen=True)
class Plot:
    """A plotly figure, what it shows (a title, and a sentence for those who cannot see it), and if it needs room."""

    title: str
    sentence: str
    figure: Mapping[str, Any]
    wide: bool = False


def short(text: str, longest: int = 24) -> str:
    """A name shortened for a legend or an axis."""
    shown = clean(text)
    return html.escape(
        shown if len(shown) <= longest else f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}", quote=False
    )


def literal(text: str) -> str:
    """`text` as plain text: plotly interprets some HTML."""
    return html.escape(clean(text), quote=False)


def figure_of(traces: Sequence[go.Scatter], x: Mapping[str, Any], y: Mapping[str, Any]) -> go.Figure:
    """A figure of `traces` with the axes `x` and `y`, in the layout of all plots."""
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        template="none",
        height=340,
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        hovermode="closest",
        showlegend=True,
        dragmode=False,
        xaxis={"zeroline": False, **x},
        yaxis={"zeroline": False, **y},
    )
    figure.update_xaxes(title_standoff=10)
    return figure


def plain(figure: go.Figure) -> Mapping[str, Any]:
    """`figure` as JSON values, without plotly's template."""
    values: dict[str, Any] = figure.to_plotly_json()
    values["layout"].pop("template", None)
    return values
