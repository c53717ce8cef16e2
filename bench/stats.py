"""Intervals and comparisons; every function is pure and takes counts or rates, never text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from scipy import special, stats


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


def difference(gap: float, spread: Spread, a: int, b: int) -> float:
    """The two-sided p-value of a `gap` between two means over `a` and `b` seeds, by a t-test with the pooled `spread`.

    Without degrees of freedom nothing can be told apart: 1.
    """
    if spread.df == 0:
        return 1.0
    error = spread.sd * math.sqrt(1 / a + 1 / b)
    return 2 * float(stats.t.sf(abs(gap) / error, spread.df)) if error > 0 else float(gap == 0)


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
    p_values = [difference(means[a] - means[b], spread, len(groups[a]), len(groups[b])) for a, b in pairs]
    for (a, b), p in zip(pairs, holm(p_values), strict=True):
        if p < alpha:
            place[a if means[a] < means[b] else b] += 1
    return place


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p-value that two nets are right equally often on the same images.

    `b`, `c`: how many images the one and the other alone gets right; under the null hypothesis each of the b + c is a
    fair coin (McNemar 1947, Psychometrika 12, p. 153, with the binomial distribution instead of chi-squared).
    """
    return min(1.0, 2 * paired(max(b, c), min(b, c)))


def paired(b: int, c: int) -> float:
    """The exact one-sided p-value of `b` or more of b + c discordant pairs, each a fair coin: the sign test.

    Raises ValueError below 0.
    """
    if b < 0 or c < 0:
        raise ValueError(f"{b} and {c} are not counts")
    return float(stats.binom.sf(b - 1, b + c, 0.5))


def _or_more(count: np.ndarray | int, n: np.ndarray | int, rate: float) -> np.ndarray:
    """The probability of `count` or more of `n` events, each with probability `rate`; broadcast over counts and n."""
    k, most = np.asarray(count), np.asarray(n)
    inside = special.betainc(np.maximum(k, 1), np.maximum(most - k + 1, 1), rate)
    return np.where(k <= 0, 1.0, np.where(k > most, 0.0, inside))


def _log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
    """The logarithm of the binomial coefficient n over k."""
    return -special.betaln(n - np.asarray(k) + 1, np.asarray(k) + 1) - math.log(n + 1)


@cache
def noise(count: int, n: int, rate: float) -> float:
    """The probability that an attack's own noise changes `count` or more of `n` images, each with probability `rate`.

    A negative count, as where more is found than was claimed, has probability 1. Raises ValueError when count > n.
    """
    if count > n:
        raise ValueError(f"{count} of {n} images is not possible")
    return float(_or_more(count, n, rate))


@cache
def noise_gap(gap: int, n: int, rate: float) -> float:
    """The probability that noise alone makes a second count of `n` robust images smaller by `gap` or more.

    Either of the two runs loses each image with probability `rate`, independently, so the gap is the difference of two
    binomial counts. Raises ValueError when gap > n.
    """
    if gap > n:
        raise ValueError(f"a gap of {gap} of {n} images is not possible")
    most = min(n, int(n * rate + 10 * math.sqrt(n * rate)) + 30)  # beyond lies less than 1e-20
    lost = np.arange(most + 1)
    chance = np.exp(_log_choose(n, lost) + special.xlogy(lost, rate) + special.xlog1py(n - lost, -rate))
    or_more = np.append(chance[::-1].cumsum()[::-1], 0.0)
    return min(1.0, float((chance * or_more[np.clip(lost + gap, 0, most + 1)]).sum()))


def sampled_noise(standing: int, sample: int, robust: int, n: int, rate: float) -> float:
    """The probability that `standing` or fewer of a random `sample` stand when `robust` of all `n` images are robust.

    How many of the sample are robust is hypergeometric; the attack's noise then fools each of these with probability
    `rate`. For the whole (sample = n) this is `noise(robust - standing, robust, rate)`. Raises ValueError for counts
    that are not within each other.
    """
    if not (0 <= standing <= sample <= n and 0 <= robust <= n):
        raise ValueError(f"{standing} of {sample} and {robust} of {n} are not counts of one sample")
    share = robust / n
    mean, spread = sample * share, math.sqrt(sample * share * (1 - share) * (n - sample) / max(1, n - 1))
    least, most = int(mean - 10 * spread) - 30, int(mean + 10 * spread) + 30  # beyond lies less than 1e-20
    drawn = np.arange(max(0, sample - (n - robust), least), min(sample, robust, most) + 1)
    ways = _log_choose(robust, drawn) + _log_choose(n - robust, sample - drawn) - _log_choose(n, sample)
    return min(1.0, float((np.exp(ways) * _or_more(drawn - standing, drawn, rate)).sum()))
