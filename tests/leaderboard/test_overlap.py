"""Overlaps of masks against counts made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prunebench.leaderboard.nets import Mask
from prunebench.leaderboard.overlap import agreements, jaccard, jackknife


def mask(*layers):
    """A mask of layers written as strings of 0 and 1."""
    arrays = [np.array([int(bit) for bit in layer], bool) for layer in layers]
    return Mask(
        tuple(np.packbits(a) for a in arrays), tuple(a.size for a in arrays), tuple(int(a.sum()) for a in arrays)
    )


def test_overlap_and_chance_are_counted_layer_by_layer():
    """Shared 1 + 1 of 3 + 3 kept: 2 / 4. Chance shares 2 * 2 / 4 + 1 * 1 / 10 = 1.1: 1.1 / 4.9."""
    a, b = mask("1100", "1000000000"), mask("0110", "1000000000")
    assert jaccard(a, b) == (2 / 4, pytest.approx(1.1 / 4.9))
    assert jaccard(a, a)[0] == 1.0 and jaccard(b, a) == jaccard(a, b)


def test_the_layers_count_not_only_the_whole():
    """The twin: all 14 positions as one layer, where chance shares 3 * 3 / 14."""
    a, b = mask("11001000000000"), mask("01101000000000")
    assert jaccard(a, b) == (2 / 4, pytest.approx((9 / 14) / (6 - 9 / 14)))


def test_bits_beyond_the_last_weight_do_not_count():
    assert jaccard(mask("101"), mask("011")) == (1 / 3, pytest.approx((4 / 3) / (4 - 4 / 3)))


def test_nets_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="different layers"):
        jaccard(mask("10"), mask("100"))
    with pytest.raises(ValueError, match="keeps a weight"):
        jaccard(mask("00"), mask("00"))


def test_rows_are_compared_between_seeds_and_with_each_other():
    """`same` keeps one mask at all seeds, twice chance; `other` shares its seed's mask with it at seed 0 alone."""
    one, two = mask("1100"), mask("0011")
    same, other = dict.fromkeys(range(3), one), {0: one, 1: two, 9: two}
    found = {(each.ours, each.theirs): each for each in agreements({"same": same, "other": other})}
    own, cross = found["same", "same"], found["same", "other"]
    assert (own.pairs, own.same_seed, own.jaccard, own.chance) == (3, False, 1.0, pytest.approx(1 / 3))
    assert (own.ratio, own.low, own.high) == (pytest.approx(3), pytest.approx(3), pytest.approx(3))
    assert (cross.pairs, cross.same_seed, cross.jaccard) == (2, True, 0.5)  # seeds 0 and 1
    assert found["other", "other"].pairs == 3 and found["other", "other"].ratio == pytest.approx(1)
    assert set(found) == {("same", "same"), ("other", "other"), ("same", "other")}


def test_one_seed_has_no_agreement_of_its_own():
    assert agreements({"imp": {0: mask("10")}}) == []
    (each,) = agreements({"imp": {0: mask("10")}, "awt": {0: mask("10")}})
    assert (each.pairs, each.low, each.high) == (1, None, None)


def test_the_jackknife_over_single_seeds_is_the_t_interval():
    """1, 2 and 6: mean 3, sd sqrt(7), t(.975, 2) = 4.302653."""
    low, high = jackknife({(0, 0): 1.0, (1, 1): 2.0, (2, 2): 6.0})
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_the_jackknife_leaves_out_seeds_not_pairs():
    """Of the pairs 01, 02, 12 with 0, 3, 6 one stays without a seed: 6, 3, 0, so the error is sqrt(2 / 3 * 18)."""
    low, high = jackknife({(0, 1): 0.0, (0, 2): 3.0, (1, 2): 6.0})
    assert (high - low) / 2 == pytest.approx(4.302653 * math.sqrt(12)) and low + high == pytest.approx(6)
    assert jackknife({(0, 1): 1.0}) is None
