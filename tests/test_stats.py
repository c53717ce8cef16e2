"""Statistics against answers that can be had on paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.stats import Spread, holm, mcnemar, noise, noise_gap, paired, places, pooled, sampled_noise, wilson

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


# Paired outcomes: fair coins, so every answer is a sum of binomial coefficients over a power of two.


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 2**5),
        (5, 1, 2 * (6 + 1) / 2**6),
        (8, 2, 2 * (45 + 10 + 1) / 2**10),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_on_paper(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p, rel=1e-12)
    assert mcnemar(c, b) == mcnemar(b, c)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (0, 5, 1.0), (10, 0, 1 / 2**10), (5, 1, 7 / 2**6), (1, 5, 63 / 2**6)],
)
def test_the_paired_test_looks_to_one_side(b, c, p):
    assert paired(b, c) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_scipys_binomial_test(b, c):
    assert mcnemar(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9)


def test_counts_below_zero_are_refused():
    with pytest.raises(ValueError, match="not counts"):
        paired(-1, 3)


def test_noise_on_paper():
    # Of 3 images, each changed with probability 1/4: none 27/64, one 27/64, two 9/64, three 1/64.
    assert [noise(k, 3, 1 / 4) for k in (-2, 0, 1, 2, 3)] == pytest.approx([1, 1, 37 / 64, 10 / 64, 1 / 64], rel=1e-12)
    with pytest.raises(ValueError, match="not possible"):
        noise(4, 3, 1 / 4)


@given(st.integers(1, 2000), st.floats(0, 1), st.data())
def test_the_noise_is_the_binomial_distribution_of_scipy(n, rate, data):
    count = data.draw(st.integers(-1, n))
    assert noise(count, n, rate) == pytest.approx(stats.binom.sf(count - 1, n, rate), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("n", "rate"), [(1, 0.3), (40, 0.5), (650, 0.014), (6500, 0.0105), (300, 1.0), (300, 0.0)])
def test_gaps_and_samples_are_the_sums_of_scipys_distributions(n, rate):
    for gap in (-3, 0, 1, n // 50, n // 20, n):
        lost = range(n + 1)
        expected = (stats.binom.pmf(lost, n, rate) * stats.binom.sf([k + gap - 1 for k in lost], n, rate)).sum()
        assert noise_gap(gap, n, rate) == pytest.approx(expected, rel=1e-9, abs=1e-18)
    robust, sample = 2 * n // 3, n // 2
    for standing in (0, sample // 2, sample):
        drawn = [k for k in range(sample + 1) if k <= robust]
        chance = stats.hypergeom.pmf(drawn, n, robust, sample)
        expected = (chance * stats.binom.sf([k - standing - 1 for k in drawn], drawn, rate)).sum()
        assert sampled_noise(standing, sample, robust, n, rate) == pytest.approx(expected, rel=1e-9, abs=1e-18)


def test_the_gap_of_two_noisy_counts_on_paper():
    # One image, lost in either run with 1/2: the second count is smaller by one in 1 case of 4, and not larger in 3.
    assert [noise_gap(k, 1, 1 / 2) for k in (-1, 0, 1)] == pytest.approx([1, 3 / 4, 1 / 4])
    # With 1/2 the gap is a count of 2n fair coins, less n: of 40 coins 25 or more.
    assert noise_gap(5, 20, 1 / 2) == pytest.approx(paired(25, 15)) == pytest.approx(noise(25, 40, 1 / 2))
    assert noise_gap(0, 100, 0) == 1 and noise_gap(1, 100, 0) == 0
    with pytest.raises(ValueError, match="not possible"):
        noise_gap(5, 4, 1 / 2)


def test_sampled_noise_on_paper():
    # Of 4 images 2 are robust, 2 are drawn: 0, 1, 2 robust ones with 1/6, 4/6, 1/6. Without noise that is all.
    assert [sampled_noise(k, 2, 2, 4, 0) for k in (0, 1, 2)] == pytest.approx([1 / 6, 5 / 6, 1])
    # Each robust one is fooled with 1/2. None stands: of 0, 1, 2 robust ones all fell, with 1, 1/2, 1/4.
    assert sampled_noise(0, 2, 2, 4, 1 / 2) == pytest.approx(1 / 6 + 4 / 6 * 1 / 2 + 1 / 6 * 1 / 4)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_a_sample_of_all_is_the_noise_alone(case):
    standing, robust, n = case
    assert sampled_noise(standing, n, robust, n, 1 / 256) == pytest.approx(noise(robust - standing, robust, 1 / 256))


@pytest.mark.parametrize("case", [(3, 2, 2, 4), (0, 5, 2, 4), (0, 2, 5, 4), (-1, 2, 2, 4)])
def test_a_sample_that_is_none_is_refused(case):
    with pytest.raises(ValueError, match="not counts of one sample"):
        sampled_noise(*case, 1 / 256)
