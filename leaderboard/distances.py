"""The distances stored beside a record: the smallest perturbation found for each test image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prunebench.bench import stats
from prunebench.bench.beyond import Distances
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import load_arrays, outcomes_path
from prunebench.bench.record import Record
from prunebench.bench.seeds import derive


def measured(record: Record) -> Distances | None:
    """What `record` says about distances; None if they were not measured."""
    return record.beyond.distances


def raw_distances(path: Path, record: Record) -> np.ndarray | None:
    """The distances, float32 (n,), of the images of `record`, which is at `path`; None if they are not beside it.

    Raises PrunebenchError for outcomes that do not belong to the record, or hold no distances of its images.
    """
    if measured(record) is None or not outcomes_path(path).exists():
        return None
    found = load_arrays(outcomes_path(path), record.outcomes, f"the outcomes of {path}").get("distance")
    kind, shape = np.dtype("<f4"), (record.score.n,)
    if found is None or found.dtype != kind or found.shape != shape or not (found >= 0).all():
        raise PrunebenchError(
            f"{outcomes_path(path)} holds no distances of {record.score.n} images, as {path} says; score the net again."
        )
    return found


def further(
    group: Sequence[tuple[Path, Record]],
    control: Sequence[tuple[Path, Record]],
    far: Mapping[Path, np.ndarray],
    images: np.ndarray,
    confidence: float,
) -> tuple[float, float, float] | None:
    """The difference of two rows' median distances over their common seeds, and its interval; see `medians_apart`.

    `far`: the distances of each record by path; `images`: how often each bootstrap draw contains each image. None below
    two common seeds, where distances of a common seed are missing, and where a median is infinite.
    """
    sides = [{record.job.seed: (path, record) for path, record in side} for side in (group, control)]
    pairs = [[side[seed] for side in sides] for seed in sorted(sides[0].keys() & sides[1].keys())]
    if len(pairs) < 2 or not all(path in far for pair in pairs for path, _ in pair):
        return None
    ours, theirs = (np.stack([far[path] for path, _ in side]) for side in zip(*pairs, strict=True))
    names = [record.sha256 for pair in pairs for _, record in pair]
    draws = stats.drawn(len(pairs), len(images), derive(0, "bootstrap", "seeds", *names))
    return stats.medians_apart(ours, theirs, draws, images, confidence)
