"""Robust accuracy by class against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes
from prunebench.leaderboard.classes import by_class, hit_hardest
from prunebench.leaderboard.table import rank
from tests.support.records import ATTACKS, make, save

LABELS = np.array([0] * 60 + [2] * 40)


def scored(folder, pruner, seed, robust, labels=LABELS):
    """A record whose images `robust` survive, of labels 0 (60 images), 2 (40) and none of 1."""
    standing = np.zeros(100, bool)
    standing[robust] = True
    data = pack_outcomes(labels, labels, dict.fromkeys(ATTACKS, standing), {"pgd-20": standing}, {"0.2": standing})
    record = make(pruner, seed=seed, clean=100, robust=len(robust), outcomes=sha256_of(data))
    path = save(folder, record)
    write_bytes(outcomes_path(path), data)
    return path.relative_to(folder), record


def row_of(folder, *pairs):
    records = dict(pairs)
    (row,) = rank(records).boards[0].rows
    return by_class(row, records, folder)


def test_each_class_has_the_share_of_its_own_images(tmp_path):
    """Seeds 0 and 1: 30 and 0 of the 60 images of class 0, 10 and 30 of the 40 of class 2."""
    first = scored(tmp_path, "imp", 0, [*range(30), *range(60, 70)])
    found = row_of(tmp_path, first, scored(tmp_path, "imp", 1, list(range(60, 90))))
    assert found.images == (60, 0, 40)
    assert found.robust == pytest.approx((0.25, 0, 0.5))


def test_the_class_that_loses_most_is_named(tmp_path):
    """From 30 of 60 and 30 of 40 to 24 and 10: class 2 loses half, class 0 a tenth; the twin swaps the two."""
    dense = row_of(tmp_path / "a", scored(tmp_path / "a", "dense", 0, [*range(30), *range(60, 90)]))
    sparse = row_of(tmp_path / "b", scored(tmp_path / "b", "imp", 0, [*range(24), *range(60, 70)]))
    other = row_of(tmp_path / "c", scored(tmp_path / "c", "imp", 0, [*range(60, 86)]))
    assert hit_hardest(dense, [sparse]) == 2
    assert hit_hardest(dense, [other]) == 0


def test_without_all_outcomes_there_is_nothing_by_class(tmp_path):
    pairs = [scored(tmp_path, "imp", seed, [1, 2]) for seed in range(2)]
    outcomes_path(tmp_path / pairs[1][0]).unlink()
    assert row_of(tmp_path, *pairs) is None


def test_seeds_with_other_labels_are_refused(tmp_path):
    pairs = [scored(tmp_path, "imp", 0, [1]), scored(tmp_path, "imp", 1, [1], LABELS[::-1] // 2)]
    with pytest.raises(PrunebenchError, match="different labels at different seeds"):
        row_of(tmp_path, *pairs)


def test_outcomes_that_contradict_the_record_are_refused(tmp_path):
    path, record = scored(tmp_path, "imp", 0, [1, 2, 3])
    other = record.model_copy(update={"score": record.score.model_copy(update={"robust": 4})})
    with pytest.raises(PrunebenchError, match="does not hold the labels and survivors"):
        row_of(Path(tmp_path), (path, other))
