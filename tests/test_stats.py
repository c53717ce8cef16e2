"""Statistics against answers that can be had on paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import Spread, holm, places, pooled, wilson

Z = 1.959963984540054  # 97.5 % quantile of the normal


@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (450, 1000), (0, 1)])
def test_wilson_is_its_formula(count, n):
    p = count / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert wilson(count, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_at_zero_of_ten_reaches_to_z2_over_n_plus_z2():
    assert wilson(0, 10) == pytest.approx((0.0, Z**2 / (10 + Z**2)), abs=1e-12)


@pytest.mark.parametrize(("count", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_refuses_what_is_no_rate(count, n):
    with pytest.raises(ValueError, match="not a rate"):
        wilson(count, n)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(case):
    count, n = case
    low, high = wilson(count, n)
    assert -1e-12 <= low <= count / n + 1e-12
    assert count / n - 1e-12 <= high <= 1 + 1e-12
    assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_pooled_adds_squares_about_each_mean():
    # 1 2 3: squares 2, df 2. 10 14: squares 8, df 1. 7: nothing. So the variance is 10 / 3.
    spread = pooled([[1, 2, 3], [10, 14], [7]])
    assert spread.sd == pytest.approx(math.sqrt(10 / 3))
    assert spread.df == 3


def test_agreement_by_chance_does_not_show_less_spread_than_rounding():
    """A value known to a step of h is uniform in it: its standard deviation is h / sqrt(12)."""
    assert pooled([[0.8, 0.8]], resolution=0.01) == Spread(0.01 / math.sqrt(12), 1)
    assert pooled([[0.7, 0.9]], resolution=0.01) == pooled([[0.7, 0.9]])  # more than that is left as it is


def test_pooled_over_equal_values_is_nothing():
    assert pooled([[0.8, 0.8, 0.8], [0.1, 0.1, 0.1]]) == Spread(0.0, 4)


def test_pooled_over_single_values_knows_nothing():
    spread = pooled([[1.0], [5.0]])
    assert (math.isnan(spread.sd), spread.df) == (True, 0)
    assert math.isnan(spread.half_width(1))


@pytest.mark.parametrize(("df", "quantile"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (30, 2.0423)])
def test_half_width_uses_the_printed_t_table(df, quantile):
    assert Spread(3.0, df).half_width(9) == pytest.approx(quantile, abs=5e-5)  # 3 / sqrt(9) = 1


def test_holm_on_paper():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_raises_no_less_than_nothing_and_no_more_than_bonferroni(p_values):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p) + 1e-12


def test_ties_do_not_chain():
    # sd 1, two seeds each, so the error of a difference is 1; t(.975, 1000) = 1.962.
    # Holm: the widest gap of 3 needs p < .05 / 3, that is t > 2.40; the gaps of 1.5 have p = .13.
    groups = {"c": [3.0, 3.0], "b": [1.5, 1.5], "a": [0.0, 0.0]}
    assert places(groups, Spread(1.0, 1000)) == {"a": 2, "b": 1, "c": 1}


def test_places_need_holm():
    # One gap of 2.2 alone has p = .028 and separates; among three pairs it must be below .0167 and does not.
    spread = Spread(1.0, 1000)
    assert places({"b": [2.2, 2.2], "a": [0.0, 0.0]}, spread) == {"b": 1, "a": 2}
    assert places({"b": [2.2, 2.2], "a": [0.0, 0.0], "m": [1.1, 1.1]}, spread) == {"b": 1, "a": 1, "m": 1}


def test_place_counts_those_significantly_ahead():
    groups = {"worst": [0.0, 0.0], "best": [20.0, 20.0], "middle": [10.0, 10.0]}
    assert places(groups, Spread(1.0, 20)) == {"best": 1, "middle": 2, "worst": 3}


def test_more_seeds_tell_more_apart():
    spread = Spread(1.0, 1000)
    assert places({"b": [1.0] * 3, "a": [0.0] * 3}, spread)["a"] == 1  # t = 1.22
    assert places({"b": [1.0] * 9, "a": [0.0] * 9}, spread)["a"] == 2  # t = 2.12


def test_without_a_second_seed_all_tie():
    assert places({"a": [0.0], "b": [100.0]}, Spread(math.nan, 0)) == {"a": 1, "b": 1}


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), min_size=1, max_size=5), st.randoms())
def test_places_do_not_depend_on_the_order_of_rows(values, random):
    groups = {str(i): [float(v) for v in group] for i, group in enumerate(values)}
    shuffled = list(groups.items())
    random.shuffle(shuffled)
    spread = pooled(list(groups.values()))
    found = places(groups, spread)
    assert places(dict(shuffled), spread) == found
    assert 1 in found.values()
