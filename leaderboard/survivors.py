"""The raw outcomes beside records: which images survive, checked against what each record says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import load_arrays, outcomes_path, standing_of
from prunebench.bench.record import Record

MOST_IMAGES = 20_000  # for a bootstrap: the draws of more images would fill the memory


def raw_outcomes(folder: Path, records: Mapping[Path, Record]) -> dict[Path, np.ndarray]:
    """Which images are robust in each of the `records`, by path, for those with outcomes beside them in `folder`.

    Empty for more than `MOST_IMAGES` images. Raises PrunebenchError for outcomes that do not belong to their record.
    """
    small = {path: record for path, record in records.items() if record.score.n <= MOST_IMAGES}
    there = {path: record for path, record in small.items() if outcomes_path(folder / path).exists()}
    return {path: outcomes_of(folder / path, record)[2] for path, record in there.items()}


def outcomes_of(path: Path, record: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The true labels, the predicted labels and which images are robust, bool, each (n,), beside the record at `path`.

    Raises PrunebenchError for outcomes that do not belong to the record.
    """
    raw, shape = outcomes_path(path), (record.score.n,)
    arrays = load_arrays(raw, record.outcomes, f"the outcomes of {path}")
    try:
        labels, predicted, standing = arrays["labels"], arrays["predicted"], standing_of(arrays)
        fits = labels.shape == predicted.shape == standing.shape == shape and standing.dtype == bool
        fits = fits and labels.dtype.kind == predicted.dtype.kind == "i" and labels.min() >= 0
    except (KeyError, ValueError, TypeError):  # an array is missing, has another shape or holds text
        fits = False
    if not fits or int(standing.sum()) != record.score.robust:
        raise PrunebenchError(
            f"{raw} does not hold {record.score.n} images of which {record.score.robust} survive, as {path} says; "
            "score the net again."
        )
    return labels, predicted, standing
