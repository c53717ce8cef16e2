"""Simulated boards: with no difference between methods and with one of 3 points, and the tests they are put through.

The spreads of the rows are those of real records; tools/board_power.py reads them and writes the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Literal

import numpy as np
from scipy import special

from prunebench.bench import stats
from prunebench.bench.seeds import derive
from prunebench.leaderboard.contrasts import ALPHA, DRAWS, GAP

Pairs = Sequence[tuple[int, int]]
Shape = Literal["normal", "skewed"]
Test = Callable[[np.ndarray, Pairs], np.ndarray]  # counts of boards, and which rows are compared -> p-values
SHIPPED = ("primary", "secondary", "parts", "places")  # the families of the board, each with its own Holm


@dataclass(frozen=True)
class Spreads:
    """The rows of one sparsity: labels, mean rates and standard deviations between seeds, arrays of shape (rows,).

    `rho`: the mean correlation of two rows over the seeds, at least 0. `pairs`: by family, which rows are compared, and
    "all": what the board compared when it had one family. `alike`: how much two seeds of a row agree on which images
    are robust, as the correlation of an underlying normal variable; None without raw outcomes. `skew`: the mean
    skewness of the rows, 0 for normal noise and -2 for exponential; None with fewer than 10 seeds.
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


def both_stand(share: float, rho: float) -> float:
    """The probability that two normal variables of correlation `rho` are both above 0, if each is with rate `share`.

    By Owen's T function (1956).
    """
    z = float(special.ndtri(share))
    return share - 2 * float(special.owens_t(z, math.sqrt((1 - rho) / (1 + rho))))


def boards(of: Spreads, count: int, seeds: int, rng: np.random.Generator, shape: Shape = "normal") -> np.ndarray:
    """Counts of boards without differences: whole numbers, shape (count, rows, seeds).

    All rows share the mean of the rows. The noise of a row at a seed is "normal", or "skewed" (exponential: bad seeds
    deviate more than good ones).
    """

    def noise(*size: int) -> np.ndarray:
        return 1 - rng.exponential(size=size) if shape == "skewed" else rng.standard_normal(size)

    block, own = noise(count, 1, seeds), noise(count, len(of.labels), seeds)
    apart = of.sd[:, None] * (math.sqrt(of.rho) * block + math.sqrt(1 - of.rho) * own)
    whole: np.ndarray = np.rint(of.n * (of.mean.mean() + apart))
    return whole


def shifted(of: Spreads, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boards with one method 3 points ahead, which varies by board, and the index of its primary contrast."""
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
    """Welch's t-test, which ignores seeds."""
    a, b = np.array(pairs).T
    error = np.maximum(counts.var(2, ddof=1), 1 / 12) / counts.shape[2]
    both = error[:, a] + error[:, b]
    df = both**2 / (error[:, a] ** 2 + error[:, b] ** 2) * (counts.shape[2] - 1)
    return _two_sided((counts.mean(2)[:, a] - counts.mean(2)[:, b]) / np.sqrt(both), df)


def pooled(counts: np.ndarray, pairs: Pairs, variance: np.ndarray, df: int) -> np.ndarray:
    """The t-test with one spread per board, `variance` of shape (boards,), as boards used earlier."""
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
    """For each sparsity, the share of boards with a false positive of a test, and how often it finds 3 points.

    Keys are "level NAME" and "power NAME"; power is for the method against magnitude pruning.
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
            if name not in SHIPPED[1:]:  # the primary contrasts come first in "all"
                found[f"power {name}"] = float((holm(test(moved, pairs)) < ALPHA)[np.arange(count), which].mean())
        yield found


def coverage(every: Sequence[Spreads], seeds: int, count: int) -> Iterator[dict[str, float]]:
    """For each sparsity, how often a row's 95 % interval contains its mean: with its own spread, with a shared one."""
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
    """How often the 95 % intervals of test and bootstrap exclude 0 for single primary contrasts.

    Without a difference ("null") and with 3 points ("moved"). Robustness of an image follows a normal variable made of
    net, image and their interaction, which agrees between seeds as often as the board's outcomes do.
    """
    rng = np.random.default_rng(derive(0, "board-power", "bootstrap", str(of.sparsity), seeds, count))
    images = stats.drawn(of.n, DRAWS, derive(0, "board-power", "images", of.n))
    share, rho = float(of.mean.mean()), of.alike or 0.0
    z = float(special.ndtri(share))
    slope = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # derivative of the rate by the variable
    alone = (share - both_stand(share, rho)) / of.n  # variance of a row's rate due to single outcomes
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
            standing = z + net[:, :, None] + noise + np.array([ahead, 0.0])[:, None, None] > 0
            apart = standing[0].astype(np.int8) - standing[1]
            test = stats.by_seed([int(value) for value in apart.sum(1)], of.n)
            low, high = stats.bootstrap(apart, draws, images)
            away[f"{kind} test"] += test.p < ALPHA
            away[f"{kind} bootstrap"] += not low <= 0 <= high
    return {name: value / count for name, value in away.items()}
