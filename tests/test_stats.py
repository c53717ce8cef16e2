"""Statistics against answers that can be had on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prunebench.bench.stats import (
    SeedTest,
    bootstrap,
    by_seed,
    drawn,
    holm,
    logit_interval,
    mcnemar,
    medians_apart,
    noise,
    noise_gap,
    paired,
    power,
    sampled_noise,
    wilson,
)

Z = 1.959963984540054  # 97.5 % quantile of the normal


@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (450, 1000), (0, 1)])
def test_wilson_is_its_formula(count, n):
    p = count / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert wilson(count, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_at_zero_of_ten_reaches_to_z2_over_n_plus_z2():
    assert wilson(0, 10) == pytest.approx((0.0, Z**2 / (10 + Z**2)), abs=1e-12)


def test_wilson_ends_at_0_and_1_to_the_last_bit():
    assert all(wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0 for n in range(1, 200))


@pytest.mark.parametrize(("count", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_refuses_what_is_no_rate(count, n):
    with pytest.raises(ValueError, match="not a rate"):
        wilson(count, n)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(case):
    count, n = case
    low, high = wilson(count, n)
    assert -1e-12 <= low <= count / n + 1e-12
    assert count / n - 1e-12 <= high <= 1 + 1e-12
    assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def odds(rate):
    return math.log(rate / (1 - rate))


@pytest.mark.parametrize(
    ("counts", "t"),
    [([48, 50, 52], 4.302653), ([30, 50], 12.706205), ([1, 0, 0, 4], 3.182446), ([96, 100, 98], 4.302653)],
)
def test_the_interval_of_a_row_is_its_formula(counts, t):
    """On the log-odds of the mean, with its standard error there by the delta method: s / (m (1 - m))."""
    k, m = len(counts), (sum(counts) + 0.5) / (100 * len(counts) + 1)
    sd = math.sqrt(sum((c / 100 - sum(counts) / k / 100) ** 2 for c in counts) / (k - 1))
    half = t * sd / math.sqrt(k) / (m * (1 - m))
    low, high = logit_interval(counts, 100)
    assert (odds(low), odds(high)) == pytest.approx((odds(m) - half, odds(m) + half), rel=1e-5)


def test_far_from_0_and_1_the_interval_is_nearly_students():
    low, high = logit_interval([4990, 5000, 5010], 10_000)
    half = 4.302653 * 0.001 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(
    st.integers(1, 600).flatmap(lambda n: st.tuples(st.lists(st.integers(0, n), min_size=2, max_size=20), st.just(n)))
)
def test_the_interval_of_a_row_holds_its_mean_and_stays_within_0_and_1(case):
    """The interval that pooled one spread over the board reached from 94.1 to 103.3 here (98.7 +- 4.6)."""
    counts, n = case
    low, high = logit_interval(counts, n)
    assert 0 <= low <= sum(counts) / (n * len(counts)) <= high <= 1
    mirrored = logit_interval([n - count for count in counts], n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_seeds_that_agree_have_the_spread_of_rounding():
    k, sd = 3, 1 / (100 * math.sqrt(12))
    half = 4.302653 * sd / math.sqrt(k) / 0.25
    assert odds(logit_interval([50] * k, 100)[1]) == pytest.approx(half, rel=1e-5)
    low, high = logit_interval([0] * k, 100)
    m = 0.5 / 301  # half an image of 300
    assert low == 0
    assert odds(high) == pytest.approx(odds(m) + 4.302653 * sd / math.sqrt(k) / (m * (1 - m)), rel=1e-5)


@pytest.mark.parametrize("case", [([5], 10), ([], 10), ([5, 11], 10), ([-1, 5], 10), ([0, 0], 0)])
def test_what_is_no_row_is_refused(case):
    with pytest.raises(ValueError, match="not the rates of two or more seeds"):
        logit_interval(*case)


@pytest.mark.parametrize(
    ("differences", "t"), [([1, 2, 3], math.sqrt(12)), ([-4, -2, 0], -math.sqrt(3)), ([5, -5, 3, -3], 0.0)]
)
def test_pairs_by_seed_are_students_on_paper(differences, t):
    """1 2 3: mean 2, sd 1, t = 2 sqrt(3). -4 -2 0: mean -2, sd 2, t = -sqrt(3)."""
    k = len(differences)
    found = by_seed(differences, 100)
    assert found.seeds == k
    assert found.gap / (found.sd / math.sqrt(k)) == pytest.approx(t, abs=1e-12)
    if k == 3:  # the t-distribution with 2 degrees of freedom has a closed form
        assert found.p == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), rel=1e-9)
    half = {3: 4.302653, 4: 3.182446}[k] * found.sd / math.sqrt(k)
    assert (found.low, found.high) == pytest.approx((found.gap - half, found.gap + half), rel=1e-6)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.lists(st.integers(-500, 500), min_size=3, max_size=20).filter(lambda values: len(set(values)) > 1))
def test_pairs_by_seed_are_scipys(differences):
    found = by_seed(differences, 500)
    theirs = stats.ttest_1samp([value / 500 for value in differences], 0)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6)


def test_equal_pairs_have_p_1_and_a_constant_difference_never_p_0():
    """The constant difference of 5 of 500 at three seeds: sd 1 / (500 sqrt(12)), so t = 5 sqrt(12) sqrt(3) = 30."""
    assert by_seed([0, 0, 0], 500).p == 1.0
    found = by_seed([5, 5, 5], 500)
    assert found.sd == 1 / (500 * math.sqrt(12))
    assert found.p == pytest.approx(1 - 30 / math.sqrt(2 + 900), rel=1e-9)
    assert by_seed([1, 1, 1], 3).p == pytest.approx(
        1 - 6 / math.sqrt(38), rel=1e-9
    )  # floats would give a spread of 1e-17


def test_with_fewer_than_three_common_seeds_nothing_can_be_told_apart():
    """Two seeds that are both 21 of 1,000 apart: rounding's spread would give t = 42 sqrt(6) = 103."""
    assert by_seed([], 100) == SeedTest(0, None, None, None, None, 1.0)
    assert by_seed([90], 100) == SeedTest(1, 0.9, None, None, None, 1.0)
    assert by_seed([-21, -21], 1000) == SeedTest(2, -0.021, None, None, None, 1.0)
    assert by_seed([-21, -21, -21], 1000).p < 0.001  # the twin


def test_a_difference_cannot_leave_its_range():
    found = by_seed([100, -60, 100], 100)
    assert (found.low, found.high) == (-1.0, 1.0)
    assert (by_seed([90, 95, 100], 100).high, by_seed([-90, -95, -100], 100).low) == (1.0, -1.0)


def test_power_on_paper():
    """Without a difference the upper side is found in half of the level; far out always; below three seeds never."""
    assert power(0.0, 0.02, 10, 5) == pytest.approx(0.05 / 10, rel=1e-6)
    assert power(1.0, 0.02, 10, 5) == pytest.approx(1.0)
    assert power(1.0, 0.02, 2, 5) == 0.0
    assert power(0.0, 0.02, 3, 5) == pytest.approx(0.05 / 10, rel=1e-6)  # three seeds are enough for a test
    # 1,000 seeds: normal. sd 1, gap 2.5 / sqrt(1000): the mean lies 2.5 standard errors out, the bound at 1.96.
    assert power(2.5 / math.sqrt(1000), 1.0, 1000, 1) == pytest.approx(stats.norm.sf(Z - 2.5), abs=2e-3)


def test_power_is_a_number_however_far_out_the_difference_lies():
    """With the spread of rounding to 1/1000, a gap of g lies 13,416 g standard errors out: from 13 to 13,416."""
    found = [power(gap, 1 / (1000 * math.sqrt(12)), 15, 8) for gap in (0.001, 0.003, 0.0034, 0.01, 0.1, 1.0)]
    assert found == pytest.approx([1.0] * 6)


def test_power_is_how_often_the_test_finds_it():
    """20,000 samples of 5 seeds: a standard error of .0035."""
    values = np.random.default_rng(1).normal(0.03, 0.02, (20_000, 5))
    t = values.mean(1) / values.std(1, ddof=1) * math.sqrt(5)
    found = (2 * stats.t.sf(np.abs(t), 4) < 0.05 / 3) & (t > 0)
    assert power(0.03, 0.02, 5, 3) == pytest.approx(found.mean(), abs=0.012)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.integers(2, 40), st.integers(1, 20))
def test_power_grows_with_seeds_and_falls_with_tests(seeds, tests):
    assert power(0.03, 0.04, seeds, tests) <= power(0.03, 0.04, seeds + 1, tests) + 1e-9
    assert power(0.03, 0.04, seeds, tests + 1) <= power(0.03, 0.04, seeds, tests) + 1e-9


def test_draws_are_of_so_many_with_replacement_and_follow_the_seed():
    found = drawn(7, 1000, 3)
    assert (found.sum(axis=1) == 7).all() and found.shape == (1000, 7) and found.dtype == np.float32
    assert found.mean(axis=0) == pytest.approx([1.0] * 7, abs=0.15)  # its standard error is .03
    assert (drawn(2**19 + 1, 3, 3).sum(axis=1) == 2**19 + 1).all()  # in several blocks
    assert (found == drawn(7, 1000, 3)).all() and (found != drawn(7, 1000, 4)).any()
    assert drawn(3, 4, 5).astype(int).tolist() == [[2, 1, 0], [2, 0, 1], [1, 0, 2], [2, 0, 1]]  # of PCG64


def test_the_bootstrap_of_equal_images_draws_seeds_alone_and_of_equal_seeds_images_alone():
    """Two seeds, +1 and -1 on all images: the draws are -1, 0, 0, 1. One image of two, at all seeds: 0, 1/2, 1/2, 1."""
    seeds, images = drawn(2, 4000, 1), drawn(2, 4000, 2)
    apart = np.array([[1, 1], [-1, -1]])
    assert bootstrap(apart, seeds, images) == (-1.0, 1.0)
    assert bootstrap(apart, seeds, images, confidence=0.4) == (0.0, 0.0)
    one = np.array([[1, 0], [1, 0]])
    assert bootstrap(one, seeds, images) == (0.0, 1.0)
    assert bootstrap(one, seeds, images, confidence=0.4) == (0.5, 0.5)
    assert bootstrap(np.ones((2, 2)), seeds, images) == (1.0, 1.0)
    third = np.array([[1, 0, 0]])  # 0, 1 or 2 of three with 8/27, 12/27, 6/27: at 40 and 60 per cent it is 1
    assert bootstrap(third, drawn(1, 4000, 1), drawn(3, 4000, 2), confidence=0.2) == (1 / 3, 1 / 3)


def test_the_bootstrap_has_owens_variance():
    """Single outcomes alone vary (variance 1, 10 x 200 of them): the draws have thrice their variance, 3 / 2000."""
    noise = np.random.default_rng(0).choice([-1, 1], (10, 200))
    low, high = bootstrap(noise, drawn(10, 4000, 1), drawn(200, 4000, 2))
    assert (high - low) / (2 * Z) == pytest.approx(math.sqrt(3 / 2000), rel=0.15)


ONE_SEED = drawn(1, 4000, 0)


def test_a_shift_of_all_distances_is_found_without_any_doubt():
    """Paired draws have the same middle image on both sides; the twin, drawn apart, does not."""
    theirs = np.random.default_rng(0).permutation(np.arange(101.0))[None]
    assert medians_apart(theirs + 3, theirs, ONE_SEED, drawn(101, 4000, 1)) == (3, 3, 3)
    apart = np.concatenate([theirs + 3, theirs])[:, drawn(101, 1, 2)[0].argsort()]
    _, low, high = medians_apart(apart[:1], np.flip(apart[1:], axis=1), ONE_SEED, drawn(101, 4000, 1))
    assert low < 0 < 3 < high


def test_the_median_of_three_draws_on_paper():
    """Of 0 1 2, drawn three times: the median is 0 if two or three draws are, 3 x 1/9 x 2/3 + 1/27 = 7/27."""
    images = drawn(3, 20_000, 1)
    values, none = np.array([[2.0, 0.0, 1.0]]), np.zeros((1, 3))
    seeds = drawn(1, 20_000, 0)
    assert medians_apart(values, none, seeds, images) == (1, 0, 2)
    assert medians_apart(values, none, seeds, images, confidence=1 - 2 * 0.24) == (1, 0, 2)  # 7/27 = .259
    assert medians_apart(values, none, seeds, images, confidence=1 - 2 * 0.28) == (1, 1, 1)
    even = np.array([[4.0, 1.0, 3.0, 2.0]])
    assert medians_apart(even, np.zeros((1, 4)), seeds, np.ones((20_000, 4))) == (2, 2, 2)  # the lower one


def test_seeds_are_drawn_in_pairs():
    """Equal images; medians 1 and 3 apart at two seeds: the mean of two draws of a seed is 1, 2, 2 or 3."""
    ours, theirs = np.array([[2.0] * 5, [7.0] * 5]), np.array([[1.0] * 5, [4.0] * 5])
    seeds, images = drawn(2, 4000, 1), drawn(5, 4000, 2)
    assert medians_apart(ours, theirs, seeds, images) == (2, 1, 3)
    assert medians_apart(ours, theirs, seeds, images, confidence=0.4) == (2, 2, 2)


def test_medians_that_are_not_known_are_not_compared():
    known, images = np.array([[1.0, 2.0, 3.0]]), drawn(3, 4000, 1)
    assert medians_apart(np.array([[1.0, np.inf, np.inf]]), known, ONE_SEED, images) is None
    assert medians_apart(known, np.array([[1.0, 2.0, np.inf]]), ONE_SEED, images) is None  # infinite in a draw
    assert medians_apart(np.array([[*range(100), np.inf]]), np.zeros((1, 101)), ONE_SEED, drawn(101, 4000, 1))


def test_holm_on_paper():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_raises_no_less_than_nothing_and_no_more_than_bonferroni(p_values):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p) + 1e-12


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


@settings(deadline=None)  # a busy machine is slow, not wrong
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


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_a_sample_of_all_is_the_noise_alone(case):
    standing, robust, n = case
    assert sampled_noise(standing, n, robust, n, 1 / 256) == pytest.approx(noise(robust - standing, robust, 1 / 256))


def test_what_is_certain_has_probability_1_and_not_a_last_bit_more():
    """A count that is smaller by -n or more; as many survivors of a sample as it has images, or fewer."""
    for n in range(2, 100):
        for certain in (noise_gap(-n, n, 0.018), sampled_noise(n // 2, n // 2, n // 2, n, 0.018)):
            assert certain <= 1 and certain == pytest.approx(1)


@pytest.mark.parametrize("case", [(3, 2, 2, 4), (0, 5, 2, 4), (0, 2, 5, 4), (-1, 2, 2, 4)])
def test_a_sample_that_is_none_is_refused(case):
    with pytest.raises(ValueError, match="not counts of one sample"):
        sampled_noise(*case, 1 / 256)
