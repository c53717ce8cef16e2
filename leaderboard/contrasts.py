"""The comparisons of the rows of one sparsity, and what follows from them: places and power."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from prunebench.bench import stats
from prunebench.bench.record import Record
from prunebench.bench.seeds import derive
from prunebench.leaderboard.distances import further
from prunebench.leaderboard.roles import Family, families

ALPHA = 0.05  # for each family of contrasts; intervals are at 1 - ALPHA
DRAWS = 2000  # of the bootstrap
GAP = 0.03  # the difference in robust accuracy whose power is shown
SEEDS = (10, 15, 20)  # seed counts whose power is shown beside that of the board's own count

Group = Sequence[tuple[Path, Record]]


@dataclass(frozen=True)
class Contrast:
    """A comparison of two rows of one sparsity: a method with a control, or with another method.

    `family`: as in `families`. `seeds`: those that both rows have. `gap`: robust accuracy of the pruner minus that of
    the control over these seeds. `low`, `high`: its 95 % interval from the t-test paired by seed.
    `sd`: the standard deviation of the differences between seeds. All are rates. Below `stats.FEWEST` seeds there is
    only a gap, and without a common seed not even that.
    `p`: the test's p-value; `adjusted`: Holm's, within the family at this sparsity. `bootstrap`: the 95 % interval when
    seeds and images are resampled, None without a test or unless raw outcomes are beside all records. `further`: the
    pruner's median distance minus the control's, and its interval from the same resampling; None unless distances are
    beside all records, and outside the family "primary".
    """

    pruner: str
    control: str
    sparsity: Decimal
    family: Family
    seeds: tuple[int, ...]
    gap: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float
    adjusted: float
    bootstrap: tuple[float, float] | None
    further: tuple[float, float, float] | None = None

    @property
    def verdict(self) -> str:
        """+ if the pruner is clearly more robust than the control, - if clearly less, = if the test cannot tell."""
        if self.gap is None or self.adjusted >= ALPHA:
            return "="
        return "+" if self.gap > 0 else "-"

    @property
    def agrees(self) -> bool | None:
        """Whether the intervals of bootstrap and test both contain 0 or both exclude it; None if either is missing."""
        if self.bootstrap is None or self.low is None or self.high is None:
            return None
        return (self.low <= 0 <= self.high) == (self.bootstrap[0] <= 0 <= self.bootstrap[1])


@dataclass(frozen=True)
class Power:
    """The probability of finding a true difference of `gap` between a method and magnitude pruning at one sparsity.

    `tests`: contrasts in the primary family. `mean`, `lowest`, `highest`: over the contrasts with enough seeds for a
    test, each with its own seeds and the spread of its own differences. `fewest`, `most`: their numbers of seeds.
    `planned`: the mean if each had so many seeds at least. None where no contrast has enough seeds.
    """

    sparsity: Decimal
    gap: float
    tests: int
    fewest: int
    most: int
    mean: float | None
    lowest: float | None
    highest: float | None
    planned: dict[int, float]


def contrasts(
    sparsity: Decimal,
    rivals: Mapping[str, Group],
    outcomes: Mapping[Path, np.ndarray],
    far: Mapping[Path, np.ndarray],
    images: np.ndarray,
) -> list[Contrast]:
    """All contrasts between the rows `rivals` of one sparsity, by label.

    `outcomes`: which images are robust, by record; `far`: the images' distances, by record; `images`: how often each
    bootstrap draw contains each image.
    """
    jobs = {label: group[0][1].job for label, group in rivals.items()}
    found: list[Contrast] = []
    for family, pairs in families(jobs).items():
        tests = [_test(rivals[a], rivals[b]) for a, b in pairs]
        for (a, b), (seeds, test), adjusted in zip(pairs, tests, stats.holm([t.p for _, t in tests]), strict=True):
            found.append(
                Contrast(
                    a,
                    b,
                    sparsity,
                    family,
                    seeds,
                    test.gap,
                    test.sd,
                    test.low,
                    test.high,
                    test.p,
                    adjusted,
                    _bootstrap(rivals[a], rivals[b], seeds, outcomes, images),
                    further(rivals[a], rivals[b], far, images, 1 - ALPHA) if family == "primary" else None,
                )
            )
    return found


def _test(group: Group, control: Group) -> tuple[tuple[int, ...], stats.SeedTest]:
    ours, theirs = ({record.job.seed: record.score.robust for _, record in side} for side in (group, control))
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    return seeds, stats.by_seed([ours[seed] - theirs[seed] for seed in seeds], group[0][1].score.n, 1 - ALPHA)


def image_draws(record: Record) -> np.ndarray:
    """How often each bootstrap draw contains each image of the record's test set; the same for the whole board."""
    return stats.drawn(record.score.n, DRAWS, derive(0, "bootstrap", "images", record.data.sha256))


def _bootstrap(
    group: Group, control: Group, seeds: Sequence[int], outcomes: Mapping[Path, np.ndarray], images: np.ndarray
) -> tuple[float, float] | None:
    sides = [{record.job.seed: (path, record) for path, record in side} for side in (group, control)]
    pairs = [[side[seed] for side in sides] for seed in seeds]
    if len(seeds) < stats.FEWEST or not all(path in outcomes for pair in pairs for path, _ in pair):
        return None
    standing = [[outcomes[path].astype(np.int8) for path, _ in pair] for pair in pairs]
    names = [record.sha256 for pair in pairs for _, record in pair]
    draws = stats.drawn(len(seeds), DRAWS, derive(0, "bootstrap", "seeds", *names))
    return stats.bootstrap(np.array([ours - theirs for ours, theirs in standing]), draws, images, 1 - ALPHA)


def places(contrasts: Iterable[Contrast], methods: Iterable[str]) -> dict[str, int]:
    """The place of each of the `methods`: 1 + the number of methods that are clearly more robust.

    Every pair of methods is tested once: pairs with magnitude pruning in the primary family, others in "places". A
    method that beats another is also ahead of all that the other beats: that follows from the verdicts and adds no
    error, though the pair itself may share too few seeds for a verdict.
    """
    ahead: dict[str, set[str]] = {name: set() for name in methods}
    for contrast in contrasts:
        if contrast.family in ("primary", "places") and contrast.verdict != "=":
            pair = contrast.pruner, contrast.control
            better, worse = pair if contrast.verdict == "+" else reversed(pair)
            ahead[worse].add(better)
    return {name: 1 + len(_all_ahead(name, ahead)) for name in ahead}


def _all_ahead(name: str, ahead: Mapping[str, set[str]]) -> set[str]:
    """Who is ahead of `name`, and of those, and so on."""
    found, asked = set[str](), [name]
    while asked:
        new = ahead[asked.pop()] - found - {name}
        found |= new
        asked += new
    return found


def power(contrasts: Sequence[Contrast]) -> Power | None:
    """The power of the primary contrasts of one sparsity, None if there are none."""
    asked = [contrast for contrast in contrasts if contrast.family == "primary"]
    if not asked:
        return None
    known = [(contrast.sd, len(contrast.seeds)) for contrast in asked if contrast.sd is not None]
    if not known:
        return Power(asked[0].sparsity, GAP, len(asked), 0, 0, None, None, None, {})

    def chances(count: int) -> list[float]:
        """With `count` seeds at least."""
        return [stats.power(GAP, sd, max(own, count), len(asked), ALPHA) for sd, own in known]

    fewest, most = min(count for _, count in known), max(count for _, count in known)
    now = chances(fewest)
    planned = {count: float(np.mean(chances(count))) for count in SEEDS if count > fewest}
    return Power(asked[0].sparsity, GAP, len(asked), fewest, most, float(np.mean(now)), min(now), max(now), planned)
