"""Intervals and comparisons as pure functions of counts or rates, never text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special  # scipy.stats takes a second to import

# Seeds of a test. Its level was studied from three on (docs/statistics.md). Two seeds may differ by the same number of
# images by chance; the spread is then that of rounding alone, and the test would call almost any difference clear.
FEWEST = 3


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate observed as `count` of `n` (1927, JASA 22, p. 209).

    Returns two rates in [0, 1]. Raises ValueError unless 0 <= count <= n and n > 0.
    """
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"{count} of {n} is not a rate")
    z2, rate = float(special.ndtri((1 + confidence) / 2)) ** 2, count / n
    centre = rate + z2 / (2 * n)
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * n)) / n)
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return 0.0 if count == 0 else low, 1.0 if count == n else high


def logit_interval(counts: Sequence[int], n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a mean rate over seeds (`counts` of the same `n` images), from the spread between seeds.

    A t-interval on the log-odds of the mean, transformed back to rates: logit(m) +- t * se / (m (1 - m)), with se the
    standard error of the mean over seeds. It stays in [0, 1] and always contains the mean. It is the interval "xlogit"
    of R's `survey::svyciprop` and of SUDAAN, for a proportion observed in clusters. Unlike the mean of the seeds'
    empirical logits, it is centred on the mean rate, which the board shows. As in the empirical logit (Cox 1970,
    Analysis of Binary Data, section 3.2), half an image is added on either side, so that 0 and n have an interval too.
    The spread is never below that of rounding to 1/n alone, 1 / (n sqrt(12)), even if seeds agree by chance.

    Returns two rates in [0, 1]. Raises ValueError with fewer than two seeds, or unless 0 <= count <= n and n > 0.
    """
    if len(counts) < 2 or n <= 0 or not all(0 <= count <= n for count in counts):
        raise ValueError(f"{list(counts)} of {n} are not the rates of two or more seeds")
    seeds, total = len(counts), sum(counts)
    mean, centre = total / (seeds * n), (total + 0.5) / (seeds * n + 1)
    error = _spread(counts, n) / math.sqrt(seeds)
    half = _student(confidence, seeds - 1) * error / (centre * (1 - centre))
    odds = float(special.logit(centre))
    return min(mean, float(special.expit(odds - half))), max(mean, float(special.expit(odds + half)))


@dataclass(frozen=True)
class SeedTest:
    """Two rows compared seed by seed: a t-test of their differences in rate.

    `gap`: the mean difference; `sd`: the standard deviation of the differences; `low`, `high`: the interval of the
    gap, in [-1, 1]; `p`: two-sided. Fewer than FEWEST common seeds give only a gap, and none gives nothing; then p = 1.
    """

    seeds: int
    gap: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float


def by_seed(differences: Sequence[int], n: int, confidence: float = 0.95) -> SeedTest:
    """The t-test paired by seed: `differences` of two rows' counts of the same `n` images, one per common seed.

    Nets of one seed share initialisation and batches, so seeds are blocks and only differences within a block count
    (Student 1908, Biometrika 6, p. 1). Equal counts at all seeds give p = 1. A difference that is the same at all
    seeds gets the spread of rounding to 1/n, 1 / (n sqrt(12)), so that p is never 0.
    """
    seeds = len(differences)
    if seeds == 0:
        return SeedTest(0, None, None, None, None, 1.0)
    gap = sum(differences) / (seeds * n)
    if seeds < FEWEST:
        return SeedTest(seeds, gap, None, None, None, 1.0)
    sd = _spread(differences, n)
    error = sd / math.sqrt(seeds)
    half = _student(confidence, seeds - 1) * error
    p = 2 * float(special.stdtr(seeds - 1, -abs(gap) / error))
    return SeedTest(seeds, gap, sd, max(-1.0, gap - half), min(1.0, gap + half), p)


def _spread(counts: Sequence[int], n: int) -> float:
    """The standard deviation of `counts` / `n`, exact before the root, and at least that of rounding to 1/n."""
    return max(statistics.stdev(counts) / n, 1 / (n * math.sqrt(12)))


def _student(confidence: float, df: int) -> float:
    """The half-width, in standard errors, of a t-interval with `df` degrees of freedom at `confidence`."""
    return float(special.stdtrit(df, (1 + confidence) / 2))


def power(gap: float, sd: float, seeds: int, tests: int, alpha: float = 0.05) -> float:
    """The probability that the t-test paired by seed finds a true difference of `gap` and its sign.

    `sd`: the standard deviation of the differences between seeds, above 0, in the unit of `gap`. The test is Holm's
    first step over `tests` contrasts, at level `alpha` / `tests`: the worst case. Uses the noncentral t-distribution
    (Cohen 1988, Statistical Power Analysis, chapter 2). 0 with fewer than FEWEST seeds.
    """
    if seeds < FEWEST:
        return 0.0
    bound = -special.stdtrit(seeds - 1, alpha / (2 * tests))
    missed = float(special.nctdtr(seeds - 1, gap / sd * math.sqrt(seeds), bound))
    return 1.0 if math.isnan(missed) else 1 - missed  # NaN: scipy's series, where the probability is below 1e-180


def drawn(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` items occurs in `count` draws with replacement: float32, (draws, count).

    Uses only the raw output of the generator PCG64, which numpy promises never to change.
    """
    stream, found = np.random.PCG64(seed), np.empty((draws, count), np.float32)
    at_once = max(1, 2**20 // count)
    for begin in range(0, draws, at_once):
        block = found[begin : begin + at_once]
        chosen = (stream.random_raw(block.size) % np.uint64(count)).astype(np.int64)
        cells = chosen + np.repeat(np.arange(len(block)) * count, count)
        block[:] = np.bincount(cells, minlength=block.size).reshape(block.shape)
    return found


def bootstrap(
    differences: np.ndarray, seeds: np.ndarray, images: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of the mean of `differences` when both seeds and images are resampled with replacement.

    `differences`: 1 where only the first of two rows has the image right, -1 where only the second, else 0, shape
    (seeds, images). `seeds`, `images`: how often each draw contains each of them, from `drawn`; both rows share them.
    The pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1, p. 386) with percentiles. With ten or more
    seeds it is somewhat too wide, because the noise of single outcomes is drawn twice; with three, too narrow. All
    sums are of whole numbers below 2**24, so the result is the same on every machine.
    """
    sums = (images @ differences.astype(np.float32).T * seeds).sum(axis=1, dtype=np.float64)
    low, high = np.quantile(sums / differences.size, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def medians_apart(
    ours: np.ndarray, theirs: np.ndarray, seeds: np.ndarray, images: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float] | None:
    """The difference of two rows' median distances, mean over seeds, and its interval, paired by seed and image.

    `ours`, `theirs`: distances of the same images at the same seeds, (seeds, images), infinite where unknown. `seeds`,
    `images`: how often each draw contains each of them, from `drawn`; two nets of one seed have `drawn(1, ...)`. The
    bootstrap is that of `bootstrap`; medians are lower medians. None if a median, of all images or of a draw, is
    infinite.
    """
    found = [np.stack([_medians(row, images) for row in rows]) for rows in (ours, theirs)]
    whole = [np.stack([_medians(row, np.ones((1, len(row)))) for row in rows]) for rows in (ours, theirs)]
    if not all(np.isfinite(part).all() for part in (*found, *whole)):
        return None
    means = ((found[0] - found[1]).T * seeds).sum(axis=1) / len(ours)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float((whole[0] - whole[1]).mean()), float(low), float(high)


def _medians(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The lower median of `values` (n,) in each of `draws`, (draws, n), which say how often they contain each value."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(draws[:, order], axis=1)
    middle = (reached >= (len(values) + 1) // 2).argmax(axis=1)
    return values.astype(np.float64)[order][middle]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for multiple testing (Holm 1979, Scand. J. Statist. 6, p. 65), in the order given."""
    adjusted, running = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p-value that two nets are correct equally often on the same images.

    `b`, `c`: how many images only the first and only the second net gets right. Under the null hypothesis each of the
    b + c is a fair coin (McNemar 1947, Psychometrika 12, p. 153, with the binomial distribution, not chi-squared).
    """
    return min(1.0, 2 * paired(max(b, c), min(b, c)))


def paired(b: int, c: int) -> float:
    """The exact one-sided p-value of `b` or more of b + c discordant pairs, each a fair coin: the sign test.

    Raises ValueError for negative counts.
    """
    if b < 0 or c < 0:
        raise ValueError(f"{b} and {c} are not counts")
    return float(_or_more(b, b + c, 0.5))


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

    A negative count, when more is found than was claimed, has probability 1. Raises ValueError when count > n.
    """
    if count > n:
        raise ValueError(f"{count} of {n} images is not possible")
    return float(_or_more(count, n, rate))


@cache
def noise_gap(gap: int, n: int, rate: float) -> float:
    """The probability that noise alone makes a second count of `n` robust images smaller by `gap` or more.

    Each of the two runs loses each image with probability `rate`, independently, so the gap is the difference of two
    binomial counts. Raises ValueError when gap > n.
    """
    if gap > n:
        raise ValueError(f"a gap of {gap} of {n} images is not possible")
    most = min(n, int(n * rate + 10 * math.sqrt(n * rate)) + 30)  # the tail beyond is below 1e-20
    lost = np.arange(most + 1)
    chance = np.exp(_log_choose(n, lost) + special.xlogy(lost, rate) + special.xlog1py(n - lost, -rate))
    or_more = np.append(chance[::-1].cumsum()[::-1], 0.0)
    return min(1.0, float((chance * or_more[np.clip(lost + gap, 0, most + 1)]).sum()))


def sampled_noise(standing: int, sample: int, robust: int, n: int, rate: float) -> float:
    """The probability that `standing` or fewer of a random `sample` survive when `robust` of all `n` images are robust.

    The number of robust images in the sample is hypergeometric; the attack's noise then fools each with probability
    `rate`. For the whole set (sample = n) this is `noise(robust - standing, robust, rate)`. Raises ValueError for
    inconsistent counts.
    """
    if not (0 <= standing <= sample <= n and 0 <= robust <= n):
        raise ValueError(f"{standing} of {sample} and {robust} of {n} are not counts of one sample")
    share = robust / n
    mean, spread = sample * share, math.sqrt(sample * share * (1 - share) * (n - sample) / max(1, n - 1))
    least, most = int(mean - 10 * spread) - 30, int(mean + 10 * spread) + 30  # the tails beyond are below 1e-20
    drawn = np.arange(max(0, sample - (n - robust), least), min(sample, robust, most) + 1)
    ways = _log_choose(robust, drawn) + _log_choose(n - robust, sample - drawn) - _log_choose(n, sample)
    return min(1.0, float((np.exp(ways) * _or_more(drawn - standing, drawn, rate)).sum()))
