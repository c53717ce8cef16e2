"""How often a board's tests are wrong, and how often they find 3 points: simulated from the board's own spreads.

`python -m tools.board_power RECORDS [--boards N] [--write docs/statistics.md]` takes from the records of one protocol
the standard deviation of each row between seeds and the correlation of rows over seeds, simulates boards of 3 to 20
seeds, and puts them through the tests of the board and through those that it does not use. The tables are printed, or
written between the markers of a page.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
from scipy import optimize
from scipy import stats as shapes

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import write_bytes
from prunebench.bench.record import Record
from prunebench.leaderboard.roles import families, role_of
from prunebench.leaderboard.survivors import raw_outcomes
from prunebench.leaderboard.table import read
from tools.simulated_boards import SHIPPED, Pairs, Spreads, both_stand, coverage, levels, second_opinion

SEEDS = (3, 5, 10, 15, 20)
SHAPED = 10  # seeds that records need before their shape is reported
BEGIN, END = "<!-- Made by tools/board_power.py; an edit is lost the next time. -->", "<!-- End of what is made. -->"
_LEVEL = (
    "**Level and power.** Level: the share of boards without any difference on which the test finds one; 5 % is meant. "
    "Power: the share in which it finds a method that is 3 points ahead of magnitude."
)
_INTERVALS = (
    "**Intervals of rows**: how often the 95 % interval holds the row's mean, over all rows and for the row where it "
    "does least."
)
_TESTS = {
    "pooled": "one spread for the board",
    "pooled here": "one spread for the sparsity",
    "welch": "Welch",
    "paired": "paired, one family",
    "primary": "paired, primary",
    "secondary": "paired, secondary",
    "parts": "paired, parts",
    "places": "paired, places",
}
_HELD = {
    "mean logit": "own spread, log-odds: all",
    "lowest logit": "lowest",
    "mean pooled": "one spread: all",
    "lowest pooled": "lowest",
}
_SECOND = {
    "null test": "no difference: test",
    "null bootstrap": "bootstrap",
    "moved test": "3 points: test",
    "moved bootstrap": "bootstrap",
}
_KNOWN = ["Sparsity", "Rows", "Seeds", "sd of methods", "sd of controls", "rho", "skew", "sd of differences"]


def spreads(folder: Path) -> list[Spreads]:
    """The spreads of the records below `folder`, by sparsity. Raises PrunebenchError unless rows share two seeds."""
    records = {path: record for path, record in read(folder).items() if isinstance(record, Record)}
    if len({record.protocol.name for record in records.values()}) != 1:
        raise PrunebenchError(f"{folder} holds records of several protocols; name a folder with one.")
    outcomes = raw_outcomes(folder, records)
    return [_spreads(records, outcomes, at) for at in sorted({record.job.sparsity for record in records.values()})]


def _full(records: Mapping[Path, Record]) -> dict[Path, Record]:
    """The records of the rows with the most seeds: a row with fewer would take seeds from all others."""
    counts = Counter(record.job.label for record in records.values())
    most = max(counts.values())
    return {path: record for path, record in records.items() if counts[record.job.label] == most}


def _spreads(records: Mapping[Path, Record], outcomes: Mapping[Path, np.ndarray], sparsity: float) -> Spreads:
    here = _full({path: record for path, record in records.items() if record.job.sparsity == sparsity})
    jobs = {record.job.label: record.job for record in here.values()}
    rates = {
        label: {r.job.seed: r.score.robust / r.score.n for r in here.values() if r.job.label == label}
        for label in sorted(jobs)
    }
    common = sorted(set.intersection(*(set(of) for of in rates.values())))
    if len(common) < 2:
        raise PrunebenchError(f"The rows at sparsity {sparsity} share {len(common)} seeds; two or more are needed.")
    values = np.array([[of[seed] for seed in common] for of in rates.values()])
    labels, n = tuple(rates), next(iter(here.values())).score.n
    moving = values[values.std(1) > 0]  # a constant row has neither shape nor correlation
    shared = np.corrcoef(moving)[np.triu_indices(len(moving), 1)] if len(moving) > 1 else np.zeros(1)
    skews = shapes.skew(moving, axis=1, bias=False) if len(common) >= SHAPED and len(moving) else None
    found: dict[str, Pairs] = {
        name: [(labels.index(a), labels.index(b)) for a, b in pairs] for name, pairs in families(jobs).items()
    }
    found["all"] = [*found["primary"], *found["secondary"]]
    methods = [label for label in labels if role_of(jobs[label]) == "method"]
    alike = [
        _alike([outcomes[path] for path, r in sorted(here.items()) if r.job.label == label and path in outcomes])
        for label in methods
    ]
    known = [value for value in alike if value is not None]
    return Spreads(
        Decimal(str(sparsity)),
        labels,
        values.mean(1),
        np.maximum(values.std(1, ddof=1), 1 / (n * math.sqrt(12))),
        max(0.0, float(shared.mean())),
        n,
        len(common),
        found,
        float(np.mean(known)) if known else None,
        None if skews is None else float(skews.mean()),
    )


def _alike(standing: Sequence[np.ndarray]) -> float | None:
    """The tetrachoric correlation: of two normal variables that are both positive as often as two seeds are robust."""
    if len(standing) < 2:
        return None
    share = float(np.mean(standing))
    both = float(np.mean([(a & b).mean() for i, a in enumerate(standing) for b in standing[i + 1 :]]))

    def off(rho: float) -> float:
        return both_stand(share, rho) - both

    return float(optimize.brentq(off, 0.0, 0.9999)) if off(0.0) < 0 < off(0.9999) else None


def page(every: Sequence[Spreads], count: int, resampled: int) -> str:
    """The tables as Markdown, from `count` boards per cell, or for the bootstrap `resampled` contrasts per cell."""
    asked = [of for of in every if of.pairs["primary"]]
    doubted = [of for of in asked if of.alike is not None]
    level = {f"level {name}": title for name, title in _TESTS.items()}
    power = {f"power {name}": title for name, title in _TESTS.items() if name not in SHIPPED[1:]}
    level["level pooled"], power["power pooled"] = f"Level: {_TESTS['pooled']}", f"Power: {_TESTS['pooled']}"

    def table(columns: Mapping[str, str], cells: Callable[[int], Iterable[tuple[Spreads, Mapping[str, float]]]]) -> str:
        rows = [(of, seeds, found) for seeds in SEEDS for of, found in cells(seeds)]
        rows.sort(key=lambda row: (row[0].sparsity, row[1]))
        shown = [
            [
                f"{of.sparsity:f}",
                str(seeds),
                *(f"{found[c]:.3f}".removeprefix("0") if c in found else "" for c in columns),
            ]
            for of, seeds, found in rows
        ]
        return _table(["Sparsity", "Seeds", *columns.values()], shown)

    parts = [
        f"Made from {sum(len(of.labels) * of.seeds for of in every)} records, {count:,} boards per cell.",
        "**Spreads**, in points: between the seeds of a row, and of the differences to magnitude.",
        _table(_KNOWN, sorted(map(_told, asked), key=lambda row: float(row[0]))),
        _LEVEL,
        table(level | power, lambda seeds: zip(asked, levels(every, seeds, count), strict=True)),
        "**Level where bad seeds are much further off** than good ones (exponential instead of normal noise).",
        table(level, lambda seeds: zip(asked, levels(every, seeds, count, "skewed"), strict=True)),
        _INTERVALS,
        table(_HELD, lambda seeds: zip(every, coverage(every, seeds, count), strict=True)),
    ]
    if doubted:
        parts += [
            f"**The second opinion**: of {resampled:,} single contrasts, how often the 95 % interval leaves out 0.",
            table(_SECOND, lambda seeds: ((of, second_opinion(of, seeds, resampled)) for of in doubted)),
        ]
    return "\n\n".join(parts)


def _told(of: Spreads) -> list[str]:
    methods = sorted({i for pair in of.pairs["primary"] for i in pair})
    controls = [i for i in range(len(of.labels)) if i not in methods]
    apart = [
        math.sqrt(of.sd[a] ** 2 + of.sd[b] ** 2 - 2 * of.rho * of.sd[a] * of.sd[b]) for a, b in of.pairs["primary"]
    ]

    def span(values: Sequence[float] | np.ndarray) -> str:
        return f"{100 * min(values):.1f} to {100 * max(values):.1f}" if len(values) else ""

    return [
        f"{of.sparsity:f}",
        str(len(of.labels)),
        str(of.seeds),
        span(of.sd[methods]),
        span(of.sd[controls]),
        f"{of.rho:.2f}",
        "unknown" if of.skew is None else f"{of.skew:.2f}",
        span(apart),
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, ["---:"] * len(titles), *rows))


def main() -> None:
    """Print the tables for a folder of records, or write them between the markers of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--boards", type=int, default=10_000, help="simulated boards per cell (10,000)")
    parser.add_argument("--contrasts", type=int, default=1500, help="simulated contrasts per cell, bootstrap (1,500)")
    parser.add_argument("--write", type=Path, help="a page with the two markers")
    asked = parser.parse_args()
    made = page(spreads(asked.records), asked.boards, asked.contrasts)
    if asked.write is None:
        print(made)
        return
    before, _, rest = asked.write.read_text(encoding="utf-8").partition(BEGIN)
    write_bytes(asked.write, f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}".encode())


if __name__ == "__main__":
    main()
