"""Exact tests, Holm, the bootstrap of a ratio of spreads, the interval of a share."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxcl import statistics


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_sign_flips_are_counted_one_by_one(n):
    x = np.random.default_rng(n).normal(0.4, 1, n)
    signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    expected = (np.abs(signs @ x) >= abs(x.sum()) - 1e-12).mean()
    assert statistics.sign_flip_test(x) == pytest.approx(expected)
    assert statistics.sign_flip_test([*x, np.nan]) == statistics.sign_flip_test(x)


def test_five_seeds_that_agree_give_a_sixteenth():
    assert statistics.sign_flip_test([0.1, 0.2, 0.3, 0.1, 0.2]) == 0.0625
    assert np.isnan(statistics.sign_flip_test([np.inf, 1.0, 2.0]))
    assert statistics.sign_flip_test([0.0] * 5) == 1.0
    assert statistics.sign_flip_test(np.ones(20)) == 2 / 2**20
    assert np.isnan(statistics.sign_flip_test([]))
    with pytest.raises(ValueError, match="at most 24 values, got 25"):
        statistics.sign_flip_test(np.ones(25))


def test_holm_is_the_step_down_rule():
    # By hand: sorted .01 .02 .03 .2, times 4 3 2 1, never decreasing.
    p = [0.03, np.nan, 0.01, 0.2, 0.02]
    expected = [0.06, np.nan, 0.04, 0.2, 0.06]
    np.testing.assert_allclose(statistics.holm(p), expected)
    np.testing.assert_allclose(statistics.holm([0.6, 0.9]), [1.0, 1.0])
    assert statistics.holm([]).size == 0
    with pytest.raises(ValueError, match="p-values must lie in"):
        statistics.holm([1.2])


def test_a_ratio_of_spreads_and_its_paired_bootstrap():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 3, 20), rng.normal(0, 1, 20)
    found = statistics.sd_ratio(x, y, resamples=4000)
    assert found.ratio == pytest.approx(np.std(x, ddof=1) / np.std(y, ddof=1))
    # The same in a plain loop, with other draws.
    draws = np.random.default_rng(9).integers(0, 20, (4000, 20))
    ratios = [np.std(x[d], ddof=1) / np.std(y[d], ddof=1) for d in draws]
    low, high = np.quantile(ratios, (0.025, 0.975))
    assert found.low95 == pytest.approx(low, rel=0.05)
    assert found.high95 == pytest.approx(high, rel=0.05)
    assert statistics.sd_ratio(x, y) == statistics.sd_ratio(x, y)
    # Paired: if one sample is twice the other, every resample has the same ratio.
    twice = statistics.sd_ratio(2 * y, y)
    np.testing.assert_allclose(twice, [2.0, 2.0, 2.0])


def test_a_ratio_over_no_spread_is_infinite_and_one_with_a_failed_seed_unknown():
    x = np.arange(6.0)
    assert statistics.sd_ratio(x, np.ones(6)).low95 == np.inf
    assert np.isnan(statistics.sd_ratio(x, [1, 2, np.nan, 4, 5, 6])).all()
    assert np.isnan(statistics.sd_ratio([1.0], [2.0])).all()


@pytest.mark.parametrize("value", [0.1, 0.7])
def test_equal_values_have_no_spread_though_their_mean_is_rounded(value):
    """The SD of 20 times .1 by its formula is 1e-17."""
    equal, x = np.full(20, value), np.arange(20.0)
    assert statistics.sd_ratio(x, equal) == (np.inf, np.inf, np.inf)
    assert np.isnan(statistics.sd_ratio(equal, np.full(20, 0.3))).all()
    assert statistics.sd_ratio(equal, x) == (0, 0, 0)


def test_a_ratio_of_other_seeds_is_refused():
    x = np.arange(6.0)
    with pytest.raises(ValueError, match="one value and one reference per seed"):
        statistics.sd_ratio(x, x[:3])


@pytest.mark.parametrize("count, n", [(0, 20), (1, 20), (13, 20), (20, 20)])
def test_the_interval_of_a_share_is_the_exact_one(count, n):
    low, high = statistics.share_interval(count, n)
    expected = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got 3 of 2"):
        statistics.share_interval(3, 2)
