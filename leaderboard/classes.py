"""Robust accuracy class by class, from the outcomes beside records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunebench.bench import stats
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.record import Record
from prunebench.leaderboard.board import Row
from prunebench.leaderboard.contrasts import ALPHA
from prunebench.leaderboard.survivors import outcomes_of


@dataclass(frozen=True)
class ByClass:
    """A row class by class: how many `images` each class has, and how many are robust, `counts[seed][class]`.

    `constant`: whether a net of the row answers the same class for every clean image.
    """

    row: Row
    images: tuple[int, ...]
    counts: Mapping[int, tuple[int, ...]]
    constant: bool

    @property
    def robust(self) -> tuple[float, ...]:
        """The share of each class's images that are robust, mean over seeds, in [0, 1]; 0 for an empty class."""
        shares = np.mean(list(self.counts.values()), axis=0) / np.maximum(self.images, 1)
        return tuple(map(float, shares))


def by_class(row: Row, records: Mapping[Path, Record], source: Path) -> ByClass | None:
    """The `row` class by class; None unless outcomes are beside all of its records below `source`.

    Raises PrunebenchError for outcomes of another record, and for labels that differ between seeds.
    """
    paths = [Path(path) for path in row.records]
    if not all(outcomes_path(source / path).exists() for path in paths):
        return None
    found = {records[path].job.seed: outcomes_of(source / path, records[path]) for path in paths}
    images = {tuple(np.bincount(labels).tolist()) for labels, _, _ in found.values()}
    if len(images) > 1:
        raise PrunebenchError(f"The outcomes of {row.pruner} have different labels at different seeds; score it again.")
    (of_all,) = images
    counts = {
        seed: tuple(np.bincount(labels[standing], minlength=len(of_all)).tolist())
        for seed, (labels, _, standing) in found.items()
    }
    constant = any(np.ptp(predicted) == 0 for _, predicted, _ in found.values())
    return ByClass(row, of_all, counts, constant)


def hit_hardest(before: ByClass, after: Sequence[ByClass]) -> int | None:
    """The class that loses most from `before` to the rows `after`, if it clearly loses more than the others; or None.

    A class is tested by the images that it loses at each common seed, beyond the share that the other classes lose:
    a t-test by seed, with Holm's correction over the classes.
    """
    images, rows = np.array(before.images), len(after)
    known = np.flatnonzero(images).tolist()
    seeds = [seed for seed in before.counts if all(seed in of.counts for of in after)]
    if len(known) < 2 or not seeds:
        return None
    kept = np.array([[of.counts[seed] for of in after] for seed in seeds]).sum(axis=1)
    lost = rows * np.array([before.counts[seed] for seed in seeds]) - kept
    tests = []
    for number in known:
        others = (lost.sum(axis=1) - lost[:, number]) / (images.sum() - images[number])
        excess = np.rint(lost[:, number] - others * images[number]).astype(int)
        tests.append(stats.by_seed(excess.tolist(), int(images[number]) * rows, 1 - ALPHA))
    gaps, adjusted = [test.gap or 0.0 for test in tests], stats.holm([test.p for test in tests])
    most = max(range(len(known)), key=gaps.__getitem__)
    return known[most] if gaps[most] > 0 and adjusted[most] < ALPHA else None
