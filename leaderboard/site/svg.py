"""The parts of a static chart: scales, axes, lines, marks and labels, as SVG text whose colours come from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunebench.leaderboard.render.text import flat, short
from prunebench.leaderboard.site.looks import Look

LABEL = 16  # pixels between two labels, one below the other


@dataclass(frozen=True)
class Chart:
    """A static picture: a `title` that says what is seen, the `svg`, and a `sentence` below with the figures.

    `wide`: whether it takes the whole width of a page.
    """

    title: str
    svg: str
    sentence: str
    wide: bool = False


@dataclass(frozen=True)
class Scale:
    """A linear map of values in [low, high] to pixels from `begin` to `end`; values outside land on the nearer end."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.begin + (self.end - self.begin) * min(1.0, max(0.0, share))


def around(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    """The range of `values`, widened on both sides by the share `room` of it, and never empty."""
    low, high = min(values), max(values)
    more = room * (high - low) or max(0.5, 0.1 * abs(high))
    return low - more, high + more


def within(ends: tuple[float, float], low: float = 0.0, high: float = 100.0) -> tuple[float, float]:
    """The range `ends` cut to [low, high], by default to what a per cent can be."""
    return max(low, ends[0]), min(high, ends[1])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten in [low, high], with low < high."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(each for each in (power, 2 * power, 5 * power, 10 * power) if (high - low) / each <= most)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def canvas(width: int, height: int, parts: Sequence[str], label: str) -> str:
    """The whole chart; `label` describes it to those who cannot see it.

    It grows and shrinks with the page, but not so far that its texts are shouted or cannot be read.
    """
    said, limits = html.escape(flat(label)), f"min-width: {0.62 * width:.0f}px; max-width: {1.15 * width:.0f}px"
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" style="{limits}" role="img" aria-label="{said}">'
    return f"{head}{''.join(parts)}</svg>"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text at (x, y), shortened if need be; `kind`: its classes, `anchor`: start, middle or end."""
    shown = html.escape(short(words), quote=False)
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{shown}</text>'


def prose(x: float, y: float, words: str, kind: str = "muted", anchor: str = "start") -> str:
    """A line of generated text, of any length."""
    shown = html.escape(flat(words), quote=False)
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{shown}</text>'


def path(points: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> str:
    """A line through `points`, or with `closed` the area inside it; `kind`: its classes."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="M{steps}{"Z" if closed else ""}"/>'


def line(points: Sequence[tuple[float, float]], look: Look) -> str:
    """A line in the colour of `look`, dashed for a variant."""
    return path(points, f"line s{look.colour}{' dash' * look.dashed}")


def mark(x: float, y: float, look: Look) -> str:
    """The mark of `look` at (x, y), hollow for a variant."""
    fill = "hollow" if look.dashed else f"f{look.colour}"
    return f'<path class="mark s{look.colour} {fill}" d="M{x:.1f} {y:.1f}{look.shape}"/>'


def seeds(places: Sequence[float], y: float, look: Look) -> str:
    """A faint dot for each seed, at `places` along the height `y`."""
    return f'<path class="seeds s{look.colour}" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x in places)}"/>'


def bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A filled rectangle with its upper left corner at (x, y)."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" class="{kind}"/>'


def bottom_axis(scale: Scale, y: float, title: str, at: Sequence[tuple[float, str]], top: float) -> list[str]:
    """An axis along the bottom at `y`, with a grid up to `top` and the ticks `at`: values and their texts."""
    parts = [path([(scale(value), top), (scale(value), y)], "grid") for value, _ in at]
    parts += [text(scale(value), y + 18, words, "muted", "middle") for value, words in at]
    return [*parts, prose((scale.begin + scale.end) / 2, y + 38, title, "muted", "middle")]


def left_axis(scale: Scale, x: float, title: str, right: float) -> list[str]:
    """An axis on the left at `x`, with a grid to `right`; its title lies flat above it, where it is read first."""
    at = ticks(scale.low, scale.high)
    parts = [path([(x, scale(value)), (right, scale(value))], "grid") for value in at]
    parts += [text(x - 8, scale(value) + 4, f"{value:g}", "muted", "end") for value in at]
    return [*parts, prose(max(4, x - 40), min(scale.begin, scale.end) - 12, title)]


def apart(wanted: Sequence[float], least: float = LABEL, low: float = 0.0, high: float = math.inf) -> list[float]:
    """Places as near as possible to those `wanted`, in the same order, at least `least` apart, within [low, high].

    Neighbours that are too close share their mean place and spread around it (pool adjacent violators).
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    groups: list[tuple[list[int], float]] = []  # items, and the place of their middle
    for item in order:
        groups.append(([item], wanted[item]))
        while True:
            items, middle = groups[-1]
            reach = least * (len(items) - 1) / 2
            middle = max(low + reach, min(high - reach, middle))
            groups[-1] = (items, middle)
            if len(groups) == 1:
                break
            before, earlier = groups[-2]
            if middle - reach - (earlier + least * (len(before) - 1) / 2) >= least - 1e-9:
                break
            joined = before + items
            offsets = [wanted[i] - least * (k - (len(joined) - 1) / 2) for k, i in enumerate(joined)]
            groups[-2:] = [(joined, sum(offsets) / len(offsets))]
    places = [0.0] * len(wanted)
    for items, middle in groups:
        for k, item in enumerate(items):
            places[item] = middle + least * (k - (len(items) - 1) / 2)
    return places
