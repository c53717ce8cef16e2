"""How far the kept positions of two nets agree, beyond what chance gives at their layer densities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from scipy import special

from prunebench.leaderboard.nets import Mask, ones

NEAR = 0.1  # a ratio within this of 1 is called chance


@dataclass(frozen=True)
class Agreement:
    """The overlap of rows `ours` and `theirs` over pairs of nets, as a multiple of chance: 1 is chance.

    `same_seed`: whether the two nets of a pair have the same seed, and so the same first weights. `ratio`: mean over
    the `pairs`; `low`, `high`: its 95 % interval, None where too few seeds allow one. `jaccard`, `chance`: the mean
    overlaps themselves, in [0, 1].
    """

    ours: str
    theirs: str
    same_seed: bool
    pairs: int
    ratio: float
    low: float | None
    high: float | None
    jaccard: float
    chance: float


def jaccard(a: Mask, b: Mask) -> tuple[float, float]:
    """The Jaccard index of the kept positions of two masks of one architecture, and the index that chance gives.

    Chance keeps both masks' layer counts and draws the positions in each layer: a layer of n weights shares a * b / n
    of them on average. The index of these mean counts stands for the mean index. Raises ValueError for masks of
    different layers, and for two empty masks.
    """
    if a.sizes != b.sizes:
        raise ValueError("the two nets have different layers")
    both = sum(ones(ours & theirs) for ours, theirs in zip(a.bits, b.bits, strict=True))
    expected = sum(ours * theirs / size for ours, theirs, size in zip(a.kept, b.kept, a.sizes, strict=True))
    total = sum(a.kept) + sum(b.kept)
    if total == 0:
        raise ValueError("neither net keeps a weight")
    return both / (total - both), expected / (total - expected)


def agreements(rows: Mapping[str, Mapping[int, Mask]]) -> list[Agreement]:
    """The agreements of the `rows`, each a mask per seed: of every row between its seeds, then of every two rows.

    Two rows are compared at the seeds that both have. Rows with fewer than two seeds have no agreement of their own.
    """
    found = []
    for label, masks in rows.items():
        pairs = {pair: jaccard(masks[pair[0]], masks[pair[1]]) for pair in combinations(sorted(masks), 2)}
        if pairs:
            found.append(_agreement(label, label, False, pairs))
    for ours, theirs in combinations(rows, 2):
        seeds = sorted(rows[ours].keys() & rows[theirs].keys())
        if seeds:
            pairs = {(seed, seed): jaccard(rows[ours][seed], rows[theirs][seed]) for seed in seeds}
            found.append(_agreement(ours, theirs, True, pairs))
    return found


def _agreement(ours: str, theirs: str, same: bool, pairs: Mapping[tuple[int, int], tuple[float, float]]) -> Agreement:
    ratios = {pair: found / chance if chance else 1.0 for pair, (found, chance) in pairs.items()}
    low, high = jackknife(ratios) or (None, None)
    means = [fmean(values) for values in zip(*pairs.values(), strict=True)]
    return Agreement(ours, theirs, same, len(pairs), fmean(ratios.values()), low, high, means[0], means[1])


def jackknife(pairs: Mapping[tuple[int, int], float], confidence: float = 0.95) -> tuple[float, float] | None:
    """The interval of the mean over pairs of seeds, leaving out one seed at a time; None with too few seeds.

    Pairs that share a seed are not independent, so seeds are left out, not pairs (Arvesen 1969, Annals of Mathematical
    Statistics 40, p. 2076). With pairs (seed, seed) it is the usual t-interval.
    """
    seeds = sorted({seed for pair in pairs for seed in pair})
    without = [[value for pair, value in pairs.items() if seed not in pair] for seed in seeds]
    if len(seeds) < 2 or not all(without):
        return None
    means, count = [fmean(values) for values in without], len(seeds)
    centre, middle = fmean(pairs.values()), fmean(means)
    error = math.sqrt((count - 1) / count * math.fsum((mean - middle) ** 2 for mean in means))
    half = float(special.stdtrit(count - 1, (1 + confidence) / 2)) * error
    return centre - half, centre + half
