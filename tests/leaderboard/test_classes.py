"""Robust accuracy by class against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes
from prunebench.leaderboard.classes import by_class, hit_hardest
from prunebench.leaderboard.site.charts import classes
from prunebench.leaderboard.table import rank
from tests.support.records import ATTACKS, make, save

LABELS = np.array([0] * 60 + [2] * 40)


def scored(folder, pruner, seed, robust, labels=LABELS, predicted=None, sparsity=0.9):
    """A record whose images `robust` survive, of labels 0 (60 images), 2 (40) and none of 1."""
    standing = np.zeros(100, bool)
    standing[list(robust)] = True
    answers = labels if predicted is None else predicted
    data = pack_outcomes(labels, answers, dict.fromkeys(ATTACKS, standing), {"pgd-20": standing}, {"0.2": standing})
    record = make(pruner, sparsity, seed, clean=100, robust=len(robust), outcomes=sha256_of(data))
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


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (
            (20, 22, 18),
            2,
        ),  # 16, 18, 14 more than the tenth that class 0 loses: t = 16 sqrt(3) / 2, p = .0052, twice .0103
        ((20, 2, 38), None),  # 16, -2, 34: t = 16 sqrt(3) / 18, p = .26
        ((0, 0, 0), 0),  # class 0 alone loses: 6 of 60, without any spread but rounding's
    ],
)
def test_a_class_that_clearly_loses_more_than_the_others_is_named(lost, named, tmp_path):
    """Of the 60 images of class 0, imp loses 6 with every seed, and of the 40 of class 2 as many as `lost` says."""
    dense = row_of(tmp_path / "a", *(scored(tmp_path / "a", "dense", seed, range(100)) for seed in range(3)))
    kept = [[*range(54), *range(60, 100 - of)] for of in lost]
    sparse = row_of(tmp_path / "b", *(scored(tmp_path / "b", "imp", seed, those) for seed, those in enumerate(kept)))
    assert hit_hardest(dense, [sparse]) == named
    two = row_of(tmp_path / "c", *(scored(tmp_path / "c", "imp", seed, kept[seed]) for seed in range(2)))
    assert hit_hardest(dense, [two]) is None  # too few seeds for a test


def test_a_net_that_answers_one_class_is_known(tmp_path):
    """It has the 60 images of class 0 right, and a net that answers two classes does too."""
    for answers, constant in ((np.zeros(100, int), True), (np.array([0] * 99 + [2]), False)):
        pair = scored(tmp_path / str(constant), "imp", 0, range(60), predicted=answers)
        assert row_of(tmp_path / str(constant), pair).constant is constant


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
    with pytest.raises(PrunebenchError, match="does not hold 100 images of which 4 survive"):
        row_of(Path(tmp_path), (path, other))


def test_the_chart_leaves_out_nets_that_ignore_their_images_and_says_so(tmp_path):
    """imp loses half of class 2 with every seed; awt answers class 0 alone. Without imp there is nothing to show."""
    records = dict(scored(tmp_path, "dense", seed, range(100), sparsity=0.0) for seed in range(3))
    constant = dict(scored(tmp_path, "awt", seed, range(60), predicted=np.zeros(100, int)) for seed in range(3))
    assert classes.of_board(rank(records | constant).boards[0], records | constant, tmp_path) is None
    records |= constant | dict(scored(tmp_path, "imp", seed, range(80)) for seed in range(3))
    chart = classes.of_board(rank(records).boards[0], records, tmp_path)
    assert chart.title == "Class 2 loses more robust accuracy than the others"
    assert "class 2 from 100.0 % to 50.0 % and class 0 from 100.0 % to 100.0 %." in chart.sentence
    assert chart.sentence.endswith(" Left out, with a net that answers one class for every image: awt.")
