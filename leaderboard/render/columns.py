"""The columns of a board, and which of them each table shows; add new columns here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.contrasts import Contrast
from prunebench.leaderboard.render.text import (
    SIGN,
    apart,
    best_known,
    number,
    points,
    resampled,
    verdict,
    with_interval,
)
from prunebench.leaderboard.roles import PRIMARY

LESS, SAID = f"Minus {PRIMARY}", "Verdict"  # the columns of the primary contrasts
FURTHER = f"Distance minus {PRIMARY}"


@dataclass(frozen=True)
class Column:
    """What one column shows of a row, in every output.

    `values`: its CSV columns by name, in full precision. `text`: its cell in tables for people, not yet escaped; None
    for a CSV-only column. `order`: the number by which the site sorts a table; None to sort by text. `left`: whether
    texts are left-aligned. `short`: its title where space is limited.
    """

    title: str
    values: dict[str, Callable[[Row], object]] = field(default_factory=dict)
    text: Callable[[Board, Row], str] | None = None
    order: Callable[[Board, Row], float | None] | None = None
    left: bool = False
    short: str | None = None


def _compared(say: Callable[[Contrast], str]) -> Callable[[Board, Row], str]:
    """The text of `say` for a method against magnitude pruning; empty for other rows."""

    def text(board: Board, row: Row) -> str:
        key = ("primary", row.sparsity, row.pruner)
        return next((say(c) for c in board.contrasts if (c.family, c.sparsity, c.pruner) == key), "")

    return text


def leading(text: str) -> float:
    """The number at the start of a text or of its interval; if there is none, a value below all others."""
    try:
        return float(text.lstrip("[").replace(",", " ").split()[0])
    except (IndexError, ValueError):
        return -200.0


_less, _bootstrap, _further = _compared(points), _compared(resampled), _compared(apart)

# In the order of the CSV.
COLUMNS = (
    Column(
        "Rules",
        {"official": lambda row: row.official},
        lambda board, row: "official" if row.official else "not official",
        left=True,
    ),
    Column(
        "Place",
        {"role": lambda row: row.role, "place": lambda row: row.place, "tied": lambda row: row.tied},
        lambda board, row: row.place_shown,
        lambda board, row: row.place,
        left=True,
    ),
    Column("Pruner", {"pruner": lambda row: row.pruner}, lambda board, row: row.pruner, left=True),
    Column(
        "Sparsity",
        {"sparsity": lambda row: f"{row.sparsity:f}"},
        lambda board, row: f"{row.sparsity:f}",
        lambda board, row: float(row.sparsity),
    ),
    Column(
        "Counted",
        {"true_sparsity": lambda row: row.true_sparsity},
        lambda board, row: f"{row.true_sparsity:.4f}",
        lambda board, row: row.true_sparsity,
    ),
    Column(
        "Robust %",
        {
            "robust": lambda row: row.robust.mean,
            "robust_low": lambda row: row.robust.low,
            "robust_high": lambda row: row.robust.high,
        },
        lambda board, row: with_interval(row.robust) + f" {SIGN}" * bool(row.flags),
        lambda board, row: row.robust.mean,
    ),
    Column(
        "Best known %",
        {
            "best": lambda row: None if row.best is None else row.best.mean,
            "best_low": lambda row: None if row.best is None else row.best.low,
            "best_high": lambda row: None if row.best is None else row.best.high,
        },
        lambda board, row: "" if row.best is None else best_known(row.best, row.robust),
        lambda board, row: -1.0 if row.best is None else row.best.mean,
        short="Best %",
    ),
    Column(
        "Clean %",
        {
            "clean": lambda row: row.clean.mean,
            "clean_low": lambda row: row.clean.low,
            "clean_high": lambda row: row.clean.high,
        },
        lambda board, row: with_interval(row.clean),
        lambda board, row: row.clean.mean,
    ),
    Column(
        "Median distance",
        {"median_distance": lambda row: row.distance},
        lambda board, row: "" if row.distance is None else f"{row.distance:.4f}",
        lambda board, row: row.distance,
    ),
    Column("Interval", {"interval": lambda row: row.robust.interval}),
    Column(
        "Seeds",
        {"seeds": lambda row: row.seeds},
        lambda board, row: str(len(row.seeds)),
        lambda board, row: len(row.seeds),
    ),
    Column(
        "Images right",
        {"robust_counts": lambda row: row.robust.counts, "clean_counts": lambda row: row.clean.counts},
    ),
    Column(
        "Training, M passes",
        {"train_passes": lambda row: row.train_passes},
        lambda board, row: f"{row.train_passes / 1e6:.1f}",
        lambda board, row: row.train_passes,
        short="M passes",
    ),
    Column(
        "Training, s",
        {"train_seconds": lambda row: row.train_seconds},
        lambda board, row: "unknown" if row.train_seconds is None else number(row.train_seconds),
        lambda board, row: -1.0 if row.train_seconds is None else row.train_seconds,
        short="Seconds",
    ),
    Column("Scoring, s", {"score_seconds": lambda row: row.score_seconds}),
    Column("Device", {"devices": lambda row: row.scored_on}, lambda board, row: ", ".join(row.scored_on), left=True),
    Column("Rejected", {"rejected": lambda row: row.rejected}),
    Column("Flags", {"flags": lambda row: tuple(dict.fromkeys(doubt.name for doubt in row.flags))}),
    Column("Pattern", {"patterns": lambda row: row.patterns}, lambda board, row: ", ".join(row.patterns), left=True),
    Column("Origin", {"origin": lambda row: row.origin}, lambda board, row: row.origin, left=True),
    Column("Records", {"records": lambda row: row.records}),
    # The CSV gives these for magnitude, random and shuffles, after all other columns.
    Column(LESS, text=_less, order=lambda board, row: leading(_less(board, row))),
    Column("Bootstrap", text=_bootstrap, order=lambda board, row: leading(_bootstrap(board, row))),
    Column(SAID, text=_compared(verdict), left=True),
    Column(FURTHER, text=_further, order=lambda board, row: leading(_further(board, row))),
)

# The columns of each table, in order.
MARKDOWN_METHODS = ("Place", "Pruner", "Pattern", "Robust %", LESS, SAID, "Best known %", "Clean %", "Seeds")
MARKDOWN_OTHERS = ("Place", "Pruner", "Sparsity", "Pattern", "Robust %", "Best known %", "Clean %", "Seeds")
MARKDOWN_COSTS = ("Pruner", "Sparsity", "Counted", "Training, M passes", "Training, s", "Device", "Origin", "Rules")
TERMINAL = ("Place", "Pruner", "Pattern", "Robust %", "Best known %", "Clean %", "Seeds", SAID)
LATEX = (
    *("Place", "Pruner", "Sparsity", "Robust %", "Best known %", "Clean %", "Seeds", "Training, M passes", "Pattern"),
    *("Origin", LESS, SAID),
)
SITE = (
    *("Place", "Pruner", "Sparsity", "Robust %", "Best known %", LESS, SAID, "Bootstrap", "Clean %"),
    *("Median distance", FURTHER, "Seeds", "Pattern", "Training, M passes", "Training, s", "Counted", "Device"),
    *("Origin", "Rules"),
)

_BY_TITLE = {column.title: column for column in COLUMNS}


def columns(titles: Sequence[str]) -> list[Column]:
    """The columns with these titles."""
    return [_BY_TITLE[title] for title in titles]


def filled(titles: Sequence[str], lines: Sequence[Mapping[str, str]]) -> list[str]:
    """The titles of the columns in which any of `lines` has a text."""
    return [title for title in titles if any(line[title] for line in lines)]


def texts(board: Board, row: Row) -> dict[str, str]:
    """A row's cells in tables for people, by column title; not yet escaped."""
    return {column.title: column.text(board, row) for column in COLUMNS if column.text is not None}
