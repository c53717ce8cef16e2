"""The forest plot: intervals, dots and verdicts at places worked out on paper."""

from __future__ import annotations

import re

import pytest

from prunebench.leaderboard.site.charts import forest
from prunebench.leaderboard.site.svg import Scale, around
from tests.leaderboard.test_charts import board_of, rows, sound
from tests.support.records import make


def found(board):
    """The drawn interval, the mean and the dots of imp against magnitude, in points."""
    chart = forest.of_board(board)
    svg = sound(chart) is not None and chart.svg
    ends = re.search(r'class="line s2" d="M([\d.]+) [\d.]+L([\d.]+) ', svg).groups()
    dots = re.findall(r"M([\d.]+) ", re.search(r'class="seeds s2" d="([^"]*)"', svg)[1])
    return [float(each) for each in ends], [float(dot) for dot in dots]


def test_an_interval_its_dots_and_its_figures_are_at_their_places():
    """By seed 8, 10 and 12 points: 10 +- t(.975, 2) * 2 / sqrt(3) = 10 +- 4.968; the axis goes from 0 to 14.968."""
    imp = [make("imp", 0.9, seed, robust=50 + more) for seed, more in enumerate((8, 10, 12))]
    magnitude = [make("magnitude", 0.9, seed, robust=50) for seed in range(3)]
    board, _ = board_of(imp, magnitude)
    scale = Scale(*around([0, 14.968]), forest.NAMES, forest.NAMES + forest.PANEL)
    ends, dots = found(board)
    assert ends == pytest.approx([scale(5.032), scale(14.968)], abs=0.1)
    assert dots == pytest.approx([scale(8), scale(10), scale(12)], abs=0.1)
    chart = forest.of_board(board)
    assert chart.title == "Against magnitude, 1 of 1 clearly above and 0 below"
    assert 'class="strong" text-anchor="start">+10.0 [+5.0, +15.0]<' in chart.svg


def test_what_is_not_clear_is_not_bold_and_random_has_a_panel_of_its_own():
    board, _ = board_of(rows("imp", 50), rows("magnitude", 50), rows("random", 20))
    chart = forest.of_board(board)
    assert chart.title.endswith("against random, 2 of 2 clearly above and 0 below") and "0 of 1 clearly" in chart.title
    assert 'class="muted" text-anchor="start">+0.0 [-0.7, +0.7]<' in chart.svg
    assert chart.svg.count("Points minus random") == chart.svg.count("Points minus magnitude") == 1


def test_nothing_is_drawn_where_nothing_was_tested():
    assert forest.of_board(board_of([make("imp")], [make("magnitude")])[0]) is None
    assert forest.of_board(board_of(rows("imp", 50))[0]) is None


@pytest.mark.parametrize("name", ["<script>", '"><svg onload=x>', "x" * 5000, "right\u202eleft"])
def test_a_name_is_nothing_but_text(name):
    plain, hostile = (forest.of_board(board_of(rows(each, 60), rows("magnitude", 50))[0]) for each in ("imp", name))
    assert [tag.tag for tag in sound(hostile).iter()] == [tag.tag for tag in sound(plain).iter()]
