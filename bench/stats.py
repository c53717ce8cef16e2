"""Intervals and comparisons; every function is pure and takes counts or rates, never text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from scipy import stats


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a rate seen as `count` of `n`, by Wilson's score (1927, JASA 22, p. 209).

    Returns two rates in [0, 1]. Raises ValueError unless 0 <= count <= n and n > 0.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"{count} of {n} is not a rate")
    interval = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Spread:
    """The seed-to-seed standard deviation that a whole board shares, and the degrees of freedom behind it."""

    sd: float
    df: int

    def half_width(self, seeds: int, confidence: float = 0.95) -> float:
        """Half the interval of a mean over `seeds` seeds: t * sd / sqrt(seeds). NaN without degrees of freedom."""
        if self.df == 0:
            return math.nan
        return float(stats.t.ppf((1 + confidence) / 2, self.df)) * self.sd / math.sqrt(seeds)


def pooled(groups: Sequence[Sequence[float]], resolution: float = 0.0) -> Spread:
    """The spread within `groups`: sum of squares about each group's mean over the sum of (size - 1).

    `resolution`: the step in which the values come (1/n for rates of n); seeds that agree by chance do not show less
    spread than rounding to that step has by itself, resolution / sqrt(12).
    """
    squares, df = Fraction(), 0  # exact, so that equal values have no spread at all
    for group in groups:
        values = [Fraction(value) for value in group]
        mean = sum(values, Fraction()) / len(values)
        squares += sum(((value - mean) ** 2 for value in values), Fraction())
        df += len(values) - 1
    return Spread(max(math.sqrt(squares / df), resolution / math.sqrt(12)) if df else math.nan, df)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being looked at together (Holm 1979, Scand. J. Statist. 6, p. 65), in their order."""
    adjusted, running = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def places(groups: Mapping[str, Sequence[float]], spread: Spread, alpha: float = 0.05) -> dict[str, int]:
    """The place of each group: 1 + the number of groups whose mean is significantly higher.

    Two means are compared by a two-sided t-test with the board's pooled `spread`; the p-values of all the pairs are
    adjusted by Holm. Rows that cannot be told apart share a place, and ties do not chain. Without degrees of
    freedom nothing can be told apart: every place is 1.
    """
    names = list(groups)
    place = dict.fromkeys(names, 1)
    if spread.df == 0:
        return place
    means = {name: math.fsum(groups[name]) / len(groups[name]) for name in names}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    p_values = []
    for a, b in pairs:
        error = spread.sd * math.sqrt(1 / len(groups[a]) + 1 / len(groups[b]))
        gap = abs(means[a] - means[b])
        p_values.append(2 * float(stats.t.sf(gap / error, spread.df)) if error > 0 else float(gap == 0))
    for (a, b), p in zip(pairs, holm(p_values), strict=True):
        if p < alpha:
            place[a if means[a] < means[b] else b] += 1
    return place
