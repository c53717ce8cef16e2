"""Robust accuracy class by class, from the outcomes beside records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import load_arrays, outcomes_path, standing_of
from prunebench.bench.record import Record
from prunebench.leaderboard.board import Row


@dataclass(frozen=True)
class ByClass:
    """A row class by class: the share of each class's images that are robust, mean over seeds, in [0, 1].

    `images`: how many test images each class has; classes without images have the share 0.
    """

    row: Row
    images: tuple[int, ...]
    robust: tuple[float, ...]


def by_class(row: Row, records: Mapping[Path, Record], source: Path) -> ByClass | None:
    """The `row` class by class; None unless outcomes are beside all of its records below `source`.

    Raises PrunebenchError for outcomes of another record, and for labels that are not those of its images.
    """
    paths = [Path(path) for path in row.records]
    if not all(outcomes_path(source / path).exists() for path in paths):
        return None
    seeds = [_counts(source / path, records[path]) for path in paths]
    if any(not np.array_equal(images, seeds[0][0]) for images, _ in seeds):
        raise PrunebenchError(f"The outcomes of {row.pruner} have different labels at different seeds; score it again.")
    images = seeds[0][0]
    shares = np.mean([robust / np.maximum(images, 1) for _, robust in seeds], axis=0)
    return ByClass(row, tuple(map(int, images)), tuple(map(float, shares)))


def _counts(path: Path, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """How many images each class has, and how many of them are robust."""
    arrays = load_arrays(outcomes_path(path), record.outcomes, f"the outcomes of {path}")
    labels = arrays.get("labels")
    try:
        standing = standing_of(arrays)
    except (KeyError, ValueError, TypeError):
        standing = np.empty(0, bool)
    known = labels is not None and labels.dtype.kind == "i" and labels.shape == standing.shape == (record.score.n,)
    if labels is None or not known or labels.min() < 0 or int(standing.sum()) != record.score.robust:
        raise PrunebenchError(
            f"{outcomes_path(path)} does not hold the labels and survivors of {path}; score it again."
        )
    classes = int(labels.max()) + 1
    return np.bincount(labels, minlength=classes), np.bincount(labels[standing], minlength=classes)


def hit_hardest(before: ByClass, after: Sequence[ByClass]) -> int:
    """The class that loses most from `before` to the mean of `after`."""
    mean = np.mean([of.robust for of in after], axis=0)
    known = np.array(before.images) > 0
    return int(np.where(known, np.array(before.robust) - mean, -np.inf).argmax())
