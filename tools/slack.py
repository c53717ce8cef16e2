"""What stronger attacks take from AutoAttack's number, and from which nets: a page and a figure.

`python -m tools.slack leaderboard/records/digits-linf --write docs/slack.md` reads the records of one protocol that
hold the best-known number, and the nets beside them. It prints the page, or writes it with a figure of the same name
beside it. Two runs on one machine give the same bytes.
"""

from __future__ import annotations

import argparse
import html
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

import torch

from prunebench.bench.files import write_bytes
from prunebench.bench.stats import SeedTest
from prunebench.leaderboard.render.text import VERDICTS, clean
from tools.slack_facts import (
    Correlation,
    Line,
    Scored,
    Standing,
    correlations,
    known,
    lines,
    measured,
    standings,
    suite,
)

HEADER = "<!-- Made by tools/slack.py; an edit is lost the next time. -->"
INK = "#6e7781"  # stands out on white and on the dark ground of a code host, as the series do
SERIES = ("#2f7fc4", "#c4621a", "#2e9157", "#9a66d0", "#0f8f94", "#cc4a8c")
WIDTH, HEIGHT, LEFT, TOP = 340, 240, 64, 34  # of a panel, and of the first panel's place, in pixels

_ABOUT = (
    "AutoAttack's number and the [best-known number](beyond.md#the-best-known-number) of the same nets. **Slack** is "
    "the difference: the points of robust accuracy that AutoAttack reports and a stronger suite takes away. Rates are "
    "means over seeds, in per cent of the test images. The interval of a slack is that of a t-test over seeds."
)
_DARK = (
    "*No gradient* is the share of pixels at which the gradient of the margin, the label's logit minus the largest "
    "other logit, is exactly zero, mean over the clean test images."
)
_ORDER = (
    "The methods of each sparsity under both numbers. *Order* is by mean rate. *Place* counts only methods that are "
    "better by the board's tests, and *against magnitude* is the verdict of the t-test paired by seed (Holm, 5 %; see "
    "[statistics](statistics.md)). An arrow marks a change from AutoAttack to the best-known number."
)
_RANKS = (
    "Spearman's rank correlation over nets, between slack and what is left of a net. Nets of one row are alike, so "
    "these figures describe this board and carry no p-value."
)


def page(name: str, nets: Sequence[Scored], rows: Sequence[Line], order: Sequence[Standing], figure: str) -> str:
    """The page as Markdown, for the suite `name`; `figure` is the file name of the figure beside it."""
    related = correlations(nets)
    parts = [
        HEADER,
        "# The slack of AutoAttack",
        _ABOUT,
        _found(name, nets, rows),
        _changed(order),
        _told(related[0]),
        f"![Slack of each net against its pixels without gradient and its first-layer weights]({figure})",
        "## Per pruner and sparsity",
        _DARK,
        _slacks(rows),
        "## Order and verdicts",
        _ORDER,
        _orders(order),
        "## Where the slack is",
        _RANKS,
        _correlated(related),
    ]
    return "\n\n".join(parts) + "\n"


def _found(name: str, nets: Sequence[Scored], rows: Sequence[Line]) -> str:
    robust, best = (100 * fmean(value / net.n for net, value in zip(nets, of, strict=True)) for of in _both(nets))
    most = max(rows, key=lambda row: row.slack.gap or 0.0)
    none = sum(net.slack == 0 for net in nets)
    return (
        f"**Over {len(nets):,} nets**, AutoAttack leaves {robust:.1f} % of the images and the suite {_cell(name)} "
        f"{best:.1f} %: a slack of {robust - best:.1f} points. It is largest for {_cell(most.pruner)} at "
        f"{most.sparsity:f}, with {_points(most.slack)} points. Nets without slack: {none:,}."
    )


def _both(nets: Sequence[Scored]) -> tuple[list[int], list[int]]:
    return [net.robust for net in nets], [net.best for net in nets]


def _changed(order: Sequence[Standing]) -> str:
    asked = [row for row in order if row.verdict[0] is not None]
    differ = _count(asked, lambda row: row.verdict)
    return (
        f"**Of {len(order)} rows of methods**, {_count(order, lambda row: row.order)} change their position in the "
        f"order of means and {_count(order, lambda row: row.place)} their place by the board's tests. Of {len(asked)} "
        f"verdicts against magnitude pruning, {differ} differ{'s' * (differ == 1)}."
    )


def _count(rows: Iterable[Standing], of: Callable[[Standing], tuple[object, object]]) -> int:
    return sum(before != after for before, after in map(of, rows))


def _told(all_nets: Correlation) -> str:
    dark, first = (_rho(value) or "unknown" for value in (all_nets.dark, all_nets.first))
    return (
        f"**The rank correlation** of slack over these nets is {dark} with the share of pixels without gradient, and "
        f"{first} with the number of first-layer weights."
    )


def _slacks(rows: Sequence[Line]) -> str:
    titles = ("Sparsity", "Pruner", "Seeds", "AutoAttack %", "Best %", "Slack", "First-layer weights", "No gradient %")
    cells = [
        (
            f"{row.sparsity:f}",
            _cell(row.pruner),
            str(row.slack.seeds),
            f"{100 * row.robust:.1f}",
            f"{100 * row.best:.1f}",
            _points(row.slack),
            f"{row.first:.0f} of {row.first_of}",
            f"{100 * row.dark:.1f}",
        )
        for row in rows
    ]
    return _table(titles, cells)


def _orders(order: Sequence[Standing]) -> str:
    titles = ("Sparsity", "Pruner", "Order", "Place", "Against magnitude")
    cells = [
        (
            f"{row.sparsity:f}",
            _cell(row.pruner),
            _moved(*row.order),
            _moved(*row.place),
            _moved(*map(_word, row.verdict)),
        )
        for row in order
    ]
    return _table(titles, cells)


def _correlated(related: Sequence[Correlation]) -> str:
    titles = ("Sparsity", "Nets", "Slack and pixels without gradient", "Slack and first-layer weights")
    cells = [
        ("all" if of.sparsity is None else f"{of.sparsity:f}", str(of.nets), _rho(of.dark), _rho(of.first))
        for of in related
    ]
    return _table(titles, cells)


def _points(test: SeedTest) -> str:
    """A slack in points, with its interval, cut at 0 because no net's slack is negative."""
    if test.gap is None or test.low is None or test.high is None:
        return f"{100 * (test.gap or 0.0):.1f}"
    return f"{100 * test.gap:.1f} [{100 * max(0.0, test.low):.1f}, {100 * test.high:.1f}]"


def _rho(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2) + 0:+.2f}"


def _word(verdict: str | None) -> str:
    return "" if verdict is None else VERDICTS[verdict]


def _moved(before: object, after: object) -> str:
    return str(before) if before == after else f"{before} \N{RIGHTWARDS ARROW} {after}"


def _cell(text: str) -> str:
    return html.escape(clean(text), quote=False).replace("|", "\\|")


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---" if title == "Pruner" else "---:" for title in titles]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, rule, *rows))


def figure(nets: Sequence[Scored]) -> str:
    """An SVG, a mark per net: slack against pixels without gradient, and against first-layer weights."""
    sparsities = sorted({net.sparsity for net in nets})
    top = max(max(100 * net.slack / net.n for net in nets), 1.0)
    widest = max(net.first_of for net in nets)
    panels = [
        ("Pixels without gradient, %", 100.0, [100 * net.dark for net in nets]),
        ("First-layer weights", float(widest), [float(net.first) for net in nets]),
    ]
    parts = []
    for i, (title, limit, values) in enumerate(panels):
        left = LEFT + i * (WIDTH + LEFT)
        parts += _frame(left, title, limit, top)
        for net, value in zip(nets, values, strict=True):
            x, y = left + WIDTH * value / limit, TOP + HEIGHT * (1 - 100 * net.slack / net.n / top)
            parts.append(_mark(sparsities.index(net.sparsity), x, y))
    for i, sparsity in enumerate(sparsities):
        x = LEFT + 110 * i
        parts += [_mark(i, x + 4, 14), _text(x + 14, 18, f"sparsity {sparsity:f}", "start")]
    width, height = 2 * (WIDTH + LEFT) + 16, TOP + HEIGHT + 44
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    label = "Slack of each net against its pixels without gradient, and against its first-layer weights"
    style = f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}"'
    return "\n".join([f'{head} role="img" aria-label="{label}" {style}>', *parts, "</svg>", ""])


def _frame(left: int, title: str, limit: float, top: float) -> list[str]:
    """The axes of a panel: x from 0 to `limit`, y from 0 to `top` points."""
    bottom = TOP + HEIGHT
    path = f"M{left} {TOP}V{bottom}H{left + WIDTH}"
    parts = [f'<path d="{path}" fill="none" stroke="{INK}"/>', _text(left + WIDTH / 2, bottom + 36, title)]
    parts += [_text(left + WIDTH * at / limit, bottom + 18, f"{at:g}") for at in ticks(limit)]
    parts += [_text(left - 8, bottom - HEIGHT * at / top + 4, f"{at:g}", "end") for at in ticks(top)]
    x, y = left - 38, TOP + HEIGHT / 2
    turned = f'<text transform="translate({x} {y:.1f}) rotate(-90)" text-anchor="middle">Slack, points</text>'
    return [*parts, turned]


def ticks(limit: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to `limit` (above 0): three to six of them."""
    power = 10.0 ** math.floor(math.log10(limit))
    step = next(each for each in (power / 5, power / 2, power, 2 * power) if limit / each < 6)
    return [step * i for i in range(int(limit / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _mark(series: int, x: float, y: float) -> str:
    """A mark of its own colour and shape at (x, y)."""
    shapes = ("m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0", "m-3-3h6v6h-6z", "m0-4l4 7h-8z", "m0-4l4 4-4 4-4-4z")
    colour = SERIES[series % len(SERIES)]
    shape = shapes[series % len(shapes)]
    return f'<path d="M{x:.1f} {y:.1f}{shape}" fill="none" stroke="{colour}"/>'


def main(arguments: list[str] | None = None) -> None:
    """Print the page for a folder of records, or write it and its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--write", type=Path, default=None, help="the page; the figure goes beside it")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = known(asked.records)
    nets = measured(asked.records, records, asked.data)
    drawn = (asked.write or Path("slack.md")).with_suffix(".svg")
    made = page(suite(next(iter(records.values()))), nets, lines(nets), standings(records), drawn.name)
    if asked.write is None:
        print(made, end="")
        return
    write_bytes(asked.write, made.encode())
    write_bytes(drawn, figure(nets).encode())


if __name__ == "__main__":
    main()
