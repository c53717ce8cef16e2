"""How often a board's tests are wrong, and how often they find 3 points: simulated from the board's own spreads.

`python -m tools.board_power RECORDS [--boards N] [--write docs/statistics.md]` takes from the records of one protocol
the standard deviation of each row between seeds and how much rows share of a seed, makes boards of 3 to 20 seeds with
no difference between methods and with one of 3 points, and puts them through the tests of the board and through those
that it does not use. The tables go to the screen, or between the markers of a page.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import optimize, special
from scipy import stats as shapes

from prunebench.bench import stats
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import write_bytes
from prunebench.bench.record import Record
from prunebench.bench.seeds import derive
from prunebench.leaderboard.contrasts import ALPHA, DRAWS, GAP, families, raw_outcomes, role_of
from prunebench.leaderboard.table import read

SEEDS = (3, 5, 10, 15, 20)
SHAPED = 10  # seeds that records need before their shape is told
SHIPPED = ("primary", "secondary", "places")  # the families of the board, each with its own Holm
BEGIN, END = "<!-- Made by tools/board_power.py; an edit is lost the next time. -->", "<!-- End of what is made. -->"
Pairs = Sequence[tuple[int, int]]
Line = list[str]  # of a table
Shape = Literal["normal", "skewed"]
Test = Callable[[np.ndarray, Pairs], np.ndarray]  # counts of boards, and which rows are compared -> p-values


@dataclass(frozen=True)
class Spreads:
    """The rows of one sparsity: labels, mean rates and standard deviations between seeds, arrays of shape (rows,).

    `rho`: the mean correlation of two rows over the seeds, no less than 0. `pairs`: by family, which rows are compared,
    and "all": what the board compared when it had one family. `alike`: how much two seeds of a row agree on which
    images stand, as the correlation of a normal variable behind them; None without raw outcomes. `skew`: the
    mean skewness of the rows, 0 for normal noise and -2 for exponential; None with fewer than 10 seeds.
    """

    sparsity: Decimal
    labels: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    rho: float
    n: int
    seeds: int
    pairs: Mapping[str, Pairs]
    alike: float | None
    skew: float | None


def spreads(folder: Path) -> list[Spreads]:
    """The spreads of the records below `folder`, by sparsity. Raises PrunebenchError unless rows share two seeds."""
    records = {path: record for path, record in read(folder).items() if isinstance(record, Record)}
    if len({record.protocol.name for record in records.values()}) != 1:
        raise PrunebenchError(f"{folder} holds records of several protocols; name a folder with one.")
    outcomes = raw_outcomes(folder, records)
    return [_spreads(records, outcomes, at) for at in sorted({record.job.sparsity for record in records.values()})]


def _spreads(records: Mapping[Path, Record], outcomes: Mapping[Path, np.ndarray], sparsity: float) -> Spreads:
    here = {path: record for path, record in records.items() if record.job.sparsity == sparsity}
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
    moving = values[values.std(1) > 0]  # a row that never changes has no shape and goes with no other
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


def _alike(stand: Sequence[np.ndarray]) -> float | None:
    """The correlation of two normal variables that stand together as often as two seeds of a row do (tetrachoric)."""
    if len(stand) < 2:
        return None
    share = float(np.mean(stand))
    both = np.mean([(a & b).mean() for i, a in enumerate(stand) for b in stand[i + 1 :]])
    z = float(special.ndtri(share))

    def off(rho: float) -> float:  # P(both > 0) less what was seen, by Owen's T function (1956)
        return share - 2 * float(special.owens_t(z, math.sqrt((1 - rho) / (1 + rho)))) - float(both)

    return float(optimize.brentq(off, 0.0, 0.9999)) if off(0.0) < 0 < off(0.9999) else None


# Boards


def boards(of: Spreads, count: int, seeds: int, rng: np.random.Generator, shape: Shape = "normal") -> np.ndarray:
    """Counts of boards without differences: whole numbers, shape (count, rows, seeds).

    All rows have the mean of the rows. What a row adds to a seed is "normal", or "skewed" (exponential: bad seeds are
    further off than good ones).
    """

    def noise(*size: int) -> np.ndarray:
        return 1 - rng.exponential(size=size) if shape == "skewed" else rng.standard_normal(size)

    block, own = noise(count, 1, seeds), noise(count, len(of.labels), seeds)
    apart = of.sd[:, None] * (math.sqrt(of.rho) * block + math.sqrt(1 - of.rho) * own)
    whole: np.ndarray = np.rint(of.n * (of.mean.mean() + apart))
    return whole


def shifted(of: Spreads, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boards with one method 3 points ahead, another one in each board, and which primary contrast is its."""
    which = np.arange(len(counts)) % len(of.pairs["primary"])
    ahead = np.array([method for method, _ in of.pairs["primary"]])[which]
    moved = counts.copy()
    moved[np.arange(len(counts)), ahead] += round(GAP * of.n)
    return moved, which


# Tests: each gives p-values of shape (boards, pairs)


def paired(counts: np.ndarray, pairs: Pairs) -> np.ndarray:
    """The test of the board, `bench.stats.by_seed`, for many boards at once."""
    a, b = np.array(pairs).T
    apart = counts[:, a] - counts[:, b]
    error = np.maximum(apart.std(2, ddof=1), 1 / math.sqrt(12)) / math.sqrt(counts.shape[2])
    return _two_sided(apart.mean(2) / error, counts.shape[2] - 1)


def welch(counts: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Welch's t-test, which does not know of seeds."""
    a, b = np.array(pairs).T
    error = np.maximum(counts.var(2, ddof=1), 1 / 12) / counts.shape[2]
    both = error[:, a] + error[:, b]
    df = both**2 / (error[:, a] ** 2 + error[:, b] ** 2) * (counts.shape[2] - 1)
    return _two_sided((counts.mean(2)[:, a] - counts.mean(2)[:, b]) / np.sqrt(both), df)


def pooled(counts: np.ndarray, pairs: Pairs, variance: np.ndarray, df: int) -> np.ndarray:
    """The t-test with one spread for the whole board, `variance` of shape (boards,): what the board did before."""
    a, b = np.array(pairs).T
    error = np.sqrt(np.maximum(variance, 1 / 12) * 2 / counts.shape[2])[:, None]
    return _two_sided((counts.mean(2)[:, a] - counts.mean(2)[:, b]) / error, df)


def _two_sided(t: np.ndarray, df: int | np.ndarray) -> np.ndarray:
    p: np.ndarray = 2 * special.stdtr(df, -np.abs(t))
    return p


def holm(p: np.ndarray) -> np.ndarray:
    """`bench.stats.holm` along the last axis."""
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1, np.maximum.accumulate(steps, -1)), -1)
    return adjusted


def levels(every: Sequence[Spreads], seeds: int, count: int, shape: Shape = "normal") -> Iterator[dict[str, float]]:
    """For each sparsity the share of boards in which a test finds what is not there, and how often it finds 3 points.

    Keys are "level NAME" and "power NAME"; a power is that of the method against magnitude pruning.
    """
    rng = np.random.default_rng(derive(0, "board-power", seeds, count, shape))
    made = [boards(of, count, seeds, rng, shape) for of in every]
    df = sum(len(of.labels) for of in every) * (seeds - 1)
    variance = sum(counts.var(2, ddof=1).sum(1) for counts in made) * (seeds - 1) / df
    for of, counts in zip(every, made, strict=True):
        if not of.pairs["primary"]:
            continue  # unpruned nets
        here = {"variance": counts.var(2, ddof=1).mean(1), "df": len(of.labels) * (seeds - 1)}
        moved, which = shifted(of, counts)
        variants: dict[str, tuple[Test, Pairs]] = {
            "pooled": (partial(pooled, variance=variance, df=df), of.pairs["all"]),
            "pooled here": (partial(pooled, **here), of.pairs["all"]),
            "welch": (welch, of.pairs["all"]),
            "paired": (paired, of.pairs["all"]),
            **{name: (paired, of.pairs[name]) for name in SHIPPED if of.pairs[name]},
        }
        found: dict[str, float] = {}
        for name, (test, pairs) in variants.items():
            found[f"level {name}"] = float((holm(test(counts, pairs)) < ALPHA).any(1).mean())
            if name not in ("secondary", "places"):  # the primary contrasts come first in "all"
                found[f"power {name}"] = float((holm(test(moved, pairs)) < ALPHA)[np.arange(count), which].mean())
        yield found


def coverage(every: Sequence[Spreads], seeds: int, count: int) -> Iterator[dict[str, float]]:
    """For each sparsity, how often 95 % intervals of rows hold the row's mean: by row's own spread, by one for all."""
    rng = np.random.default_rng(derive(0, "board-power", "coverage", seeds, count))
    made = []
    for of in every:
        rates = of.mean[:, None] + of.sd[:, None] * rng.standard_normal((count, len(of.sd), seeds))
        made.append(np.clip(np.rint(of.n * rates), 0, of.n))
    rows = sum(len(of.labels) for of in every)
    spread = np.sqrt(sum((counts / of.n).var(2, ddof=1).sum(1) for of, counts in zip(every, made, strict=True)) / rows)
    reach = float(special.stdtrit(rows * (seeds - 1), 1 - ALPHA / 2)) * spread[:, None] / math.sqrt(seeds)
    for of, counts in zip(every, made, strict=True):
        mean = counts.mean(2) / of.n
        m = (counts.sum(2) + 0.5) / (seeds * of.n + 1)
        error = np.maximum(counts.std(2, ddof=1), 1 / math.sqrt(12)) / of.n / math.sqrt(seeds)
        off = np.abs(special.logit(of.mean) - special.logit(m))
        held = {
            "logit": off <= float(special.stdtrit(seeds - 1, 1 - ALPHA / 2)) * error / (m * (1 - m)),
            "pooled": np.abs(mean - of.mean) <= reach,
        }
        yield {
            f"{what} {name}": float(value)
            for name, inside in held.items()
            for what, value in (("mean", inside.mean()), ("lowest", inside.mean(0).min()))
        }


def second_opinion(of: Spreads, seeds: int, count: int) -> dict[str, float]:
    """How often the 95 % intervals of single primary contrasts do not hold 0: those of the test and the bootstrap.

    Without a difference ("null") and with 3 points ("moved"). Which images stand follows a normal variable made of the
    net, the image and both together, which agrees between seeds as often as the board's outcomes do.
    """
    rng = np.random.default_rng(derive(0, "board-power", "bootstrap", str(of.sparsity), seeds, count))
    images = stats.drawn(of.n, DRAWS, derive(0, "board-power", "images", of.n))
    share, rho = float(of.mean.mean()), of.alike or 0.0
    z = float(special.ndtri(share))
    slope = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # of the rate over the variable
    both = share - 2 * float(special.owens_t(z, math.sqrt((1 - rho) / (1 + rho))))
    alone = (share - both) / of.n  # the variance that single outcomes give a row's rate
    away = {"null test": 0, "null bootstrap": 0, "moved test": 0, "moved bootstrap": 0}
    for i in range(count):
        pair = np.array(of.pairs["primary"][i % len(of.pairs["primary"])])
        own = np.sqrt(np.maximum(of.sd[pair] ** 2 - alone, 0)) / slope
        net = own[:, None] * (
            math.sqrt(of.rho) * rng.standard_normal(seeds) + math.sqrt(1 - of.rho) * rng.standard_normal((2, seeds))
        )
        noise = math.sqrt(rho) * rng.standard_normal(of.n) + math.sqrt(1 - rho) * rng.standard_normal((2, seeds, of.n))
        draws = stats.drawn(seeds, DRAWS, derive(0, "board-power", "seeds", seeds, i))
        for kind, ahead in (("null", 0.0), ("moved", GAP / slope)):
            stand = z + net[:, :, None] + noise + np.array([ahead, 0.0])[:, None, None] > 0
            apart = stand[0].astype(np.int8) - stand[1]
            test = stats.by_seed([int(value) for value in apart.sum(1)], of.n)
            low, high = stats.bootstrap(apart, draws, images)
            away[f"{kind} test"] += test.p < ALPHA
            away[f"{kind} bootstrap"] += not low <= 0 <= high
    return {name: value / count for name, value in away.items()}


# The page


def page(every: Sequence[Spreads], count: int, resampled: int) -> str:
    """The tables as Markdown; `count` boards a cell, `resampled` contrasts a cell for the bootstrap."""
    asked = [of for of in every if of.pairs["primary"]]
    levelled = [f"level {name}" for name in _TESTS]
    powered = [f"power {name}" for name in _TESTS if name not in ("secondary", "places")]
    heads = [f"{_TESTS[name.partition(' ')[2]]}" for name in (*levelled, *powered)]
    heads[0], heads[len(levelled)] = f"Level: {heads[0]}", f"Power: {heads[len(levelled)]}"
    rows, odd, held, second = list[Line](), list[Line](), list[Line](), list[Line]()
    for seeds in SEEDS:
        for of, found in zip(asked, levels(every, seeds, count), strict=True):
            rows.append(_line(of, seeds, found, levelled + powered))
            if of.alike is not None:
                second.append(_line(of, seeds, second_opinion(of, seeds, resampled), list(_SECOND)))
        for of, found in zip(asked, levels(every, seeds, count, "skewed"), strict=True):
            odd.append(_line(of, seeds, found, levelled))
        for of, found in zip(every, coverage(every, seeds, count), strict=True):
            held.append(_line(of, seeds, found, list(_HELD)))
    known = ["Sparsity", "Rows", "Seeds", "sd of methods", "sd of controls", "rho", "skew", "sd of differences"]
    lines = [
        f"Made from {sum(len(of.labels) * of.seeds for of in every)} records, {count:,} boards a cell.",
        "",
        "**Spreads**, in points: between the seeds of a row, and of the differences to magnitude.",
        "",
        *_table(known, [_told(of) for of in asked]),
        _LEVEL,
        "",
        *_table(["Sparsity", "Seeds", *heads], rows),
    ]
    lines += [
        "**Level where bad seeds are much further off** than good ones (exponential instead of normal noise).",
        "",
        *_table(["Sparsity", "Seeds", *heads[: len(levelled)]], odd),
        _INTERVALS,
        "",
        *_table(["Sparsity", "Seeds", *_HELD.values()], held),
    ]
    if second:
        lines += [
            f"**The second opinion**: of {resampled:,} single contrasts, how often the 95 % interval leaves out 0.",
            "",
            *_table(["Sparsity", "Seeds", *_SECOND.values()], second),
        ]
    return "\n".join(lines).strip()


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


def _line(of: Spreads, seeds: int, found: Mapping[str, float], names: Sequence[str]) -> Line:
    shown = [f"{found[name]:.3f}".removeprefix("0") if name in found else "" for name in names]
    return [f"{of.sparsity:f}", str(seeds), *shown]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, by sparsity and seeds."""
    rows = sorted(rows, key=lambda row: (float(row[0]), int(row[1])))
    return ["| " + " | ".join(row) + " |" for row in (titles, ["---:"] * len(titles), *rows)] + [""]


def main() -> None:
    """Print the tables of a folder of records, or write them between the markers of a page."""
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
