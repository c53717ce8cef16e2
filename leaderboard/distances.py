"""The distances stored beside a record: the smallest perturbation found for each test image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunebench.bench.beyond import Distances
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import load_arrays, outcomes_path
from prunebench.bench.record import Record


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
