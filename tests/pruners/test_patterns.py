"""Magnitude, HYDRA and random prune in patterns: the referee finds the pattern, and the counts are exact."""

from __future__ import annotations

import pytest
import torch

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.pattern import Chooser, patterns_of
from prunebench.pruners import baselines, hydra
from prunebench.pruners.baselines import Magnitude, Random
from prunebench.pruners.hydra import HYDRA
from tests.pruners.test_hydra import Scoring
from tests.pruners.test_pruners import RULES, SIZES, WHOLE, is_mask_of, kept, same
from tests.support.nets import lab

THIRDS = {Random: {}, Magnitude: {"dense": 1 / 3}, HYDRA: {"dense": 1 / 3, "search": 1 / 3}}
# Channels at .9: a, b and c of 16, 32 and 64 cost 9 a + 9 a b + 16 b c + 10 c weights, and 3,816 may stay. 20/64 of
# each are 5, 10, 20 and 3,895; 19/64 are 4, 9, 19 and 3,286. Then the smallest share grows: 5, 9, 19 are 3,376, and
# 5, 10, 19 are 3,725. One more of c makes 3,895, of a 3,824, of b 4,074.
COUNTS = {"1.0.weight": 45, "1.3.weight": 450, "1.7.weight": 3040, "1.9.weight": 190}


def use(cls, pattern, tmp_path, sparsity=0.9, **options):
    room = lab(tmp_path, RULES, sparsity=sparsity, kind=Scoring)
    return room, cls(**THIRDS[cls], pattern=pattern, **options)(room.job, room)


def found(room, state):
    return patterns_of(room.model(state))


def check(cls, pattern, tmp_path):
    room, state = use(cls, pattern, tmp_path)
    masks = room.asked[-1].masks
    assert found(room, state) == (pattern,)
    assert is_mask_of(masks, state) and same(room.asked[-1].trained.weights, state)
    assert room.meter.spent == room.meter.granted
    if pattern == "channel":
        assert kept(masks) == COUNTS
    assert sum(kept(masks).values()) == (3816 if pattern == "2:4" else 3725)
    if cls is Magnitude and pattern == "channel":
        norms = room.asked[0].trained.weights["1.7.weight"].abs().sum(1)
        stay = masks["1.7.weight"].any(1)
        assert stay.sum() == 19 and norms[stay].min() >= norms[~stay].max()
    if cls is HYDRA:
        assert room.searched[4]["by_four"] is (pattern == "2:4")


@pytest.mark.parametrize("pattern", ["2:4", "channel"])
@pytest.mark.parametrize("cls", THIRDS)
def test_the_net_has_the_pattern_and_the_counts(cls, pattern, tmp_path):
    check(cls, pattern, tmp_path)


@pytest.mark.parametrize("cls", THIRDS)
@pytest.mark.parametrize("pattern", ["2:4", "channel"])
@pytest.mark.parametrize("twin", ["without a pattern", "one weight moved"])
def test_pattern_twin(twin, pattern, cls, tmp_path, monkeypatch):
    broken(monkeypatch, cls, "unstructured" if twin == "without a pattern" else pattern, twin == "one weight moved")
    with pytest.raises(AssertionError):
        check(cls, pattern, tmp_path)


def test_pattern_twin_with_the_smallest_channels(tmp_path, monkeypatch):
    """Those with the smallest norms: the pattern and all counts are right."""
    broken(monkeypatch, Magnitude, "channel", scores=lambda score: score.max() - score)
    with pytest.raises(AssertionError):
        check(Magnitude, "channel", tmp_path)


def broken(monkeypatch, cls, pattern, moving=False, scores=None):
    """Give the pruner `cls` a chooser of this `pattern` that moves a weight, or sees `scores` of the scores."""

    class Broken(Chooser):
        def __call__(self, given, keeps=None):
            masks = super().__call__({name: scores(score) for name, score in given.items()} if scores else given, keeps)
            if moving:  # a third into a group of four, or one into an empty channel
                rows = masks["1.7.weight"].view(-1, 4)
                into = int((rows.sum(1) == (2 if pattern == "2:4" else 0)).nonzero()[0])
                out = next(row for row in rows.any(1).nonzero().flatten().tolist() if row != into)
                rows[out, rows[out].nonzero()[0]] = False
                rows[into, (~rows[into]).nonzero()[0]] = True
            return masks

    monkeypatch.setattr(hydra if cls is HYDRA else baselines, "Chooser", lambda given, *rest: Broken(pattern, *rest))


def test_random_rescales_channels_by_the_inputs_that_are_left(tmp_path):
    room, _ = use(Random, "channel", tmp_path)
    start, fresh, mask = (
        room.asked[0].start["1.7.weight"],
        room.initial()["1.7.weight"],
        room.asked[0].masks["1.7.weight"],
    )
    torch.testing.assert_close(start[mask], fresh[mask] / (10 / 32) ** 0.5)  # of 32 channels in front, 10 are left


@pytest.mark.parametrize("pattern", ["2:4", "channel"])
def test_shuffle_keeps_the_pattern_and_the_counts_of_the_layers(pattern, tmp_path):
    plain, _ = use(Magnitude, pattern, tmp_path)
    moved, state = use(Magnitude, pattern, tmp_path, shuffle=True)
    before, after = plain.asked[-1].masks, moved.asked[-1].masks
    assert kept(before) == kept(after) and found(moved, state) == (pattern,)
    assert not any(torch.equal(before[name], after[name]) for name in SIZES)


@pytest.mark.parametrize("cls", THIRDS)
def test_half_of_the_weights_in_two_of_four(cls, tmp_path):
    room, state = use(cls, "2:4", tmp_path, sparsity=0.5)
    assert sum(kept(room.asked[-1].masks).values()) == WHOLE // 2 and found(room, state) == ("2:4",)


@pytest.mark.parametrize("cls", THIRDS)
@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.3), ("channel", 0.999)])
def test_a_sparsity_that_the_pattern_cannot_have_is_refused_before_any_training(cls, pattern, sparsity, tmp_path):
    room = lab(tmp_path, RULES, sparsity=sparsity, kind=Scoring)
    with pytest.raises(PrunebenchError, match=rf"Pattern {pattern} .*; ask for a sparsity of"):
        cls(**THIRDS[cls], pattern=pattern)(room.job, room)
    assert room.meter.spent == 0 and not hasattr(room, "asked")
    with pytest.raises(ValueError, match="pattern = '4:8' must be one of unstructured, 2:4, channel"):
        cls(pattern="4:8")
