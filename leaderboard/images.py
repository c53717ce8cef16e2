"""Which images survive which method, and how often two nets agree on an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from prunebench.bench.record import Record
from prunebench.leaderboard.board import Row
from prunebench.leaderboard.survivors import raw_outcomes


@dataclass(frozen=True)
class Fates:
    """The fate of every test image under the nets of a row: `survives` is bool, of shape (seeds, n)."""

    row: Row
    survives: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """The share of the seeds in which each image survives, in [0, 1], of shape (n,)."""
        return np.mean(self.survives, axis=0)


def fates(row: Row, records: Mapping[Path, Record], source: Path) -> Fates | None:
    """The fates under the nets of `row`; None unless outcomes are beside all of its records below `source`.

    Raises PrunebenchError for outcomes that do not belong to their record.
    """
    paths = [Path(path) for path in row.records]
    found = raw_outcomes(source, {path: records[path] for path in paths})
    return Fates(row, np.array([found[path] for path in paths])) if len(found) == len(paths) else None


def agreement(rows: Sequence[Fates]) -> tuple[float | None, float | None]:
    """How often two nets of different seeds agree on an image, in [0, 1]: nets of one row, and of two rows.

    Each is the mean over pairs of nets, then over the rows or the pairs of rows; None without such pairs.
    """
    own = [_mean_of_pairs(of, of) for of in rows]
    cross = [_mean_of_pairs(a, b) for a, b in combinations(rows, 2)]
    within, between = ([each for each in those if each is not None] for those in (own, cross))
    return (float(np.mean(within)) if within else None, float(np.mean(between)) if between else None)


def _mean_of_pairs(a: Fates, b: Fates) -> float | None:
    pairs = [
        float(np.mean(ours == theirs))
        for seed, ours in zip(a.row.seeds, a.survives, strict=True)
        for other, theirs in zip(b.row.seeds, b.survives, strict=True)
        if seed != other
    ]
    return float(np.mean(pairs)) if pairs else None
