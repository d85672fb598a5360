"""Metrics compared with hand calculations and with SciPy, and their edge cases."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from jaxcl import metrics, statistics

# Rows: after task 1, 2, 3. Columns: accuracy on task 1, 2, 3.
A = np.array([[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.5, 0.6, 1.0]])
BASELINE = np.array([0.5, 0.1, 0.25])


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_hand_computed():
    assert metrics.average_accuracy(A) == pytest.approx((0.5 + 0.6 + 1.0) / 3)
    after_each = [0.9, (0.7 + 0.8) / 2, (0.5 + 0.6 + 1.0) / 3]
    assert metrics.average_incremental_accuracy(A) == pytest.approx(sum(after_each) / 3)
    assert metrics.backward_transfer(A) == pytest.approx((-0.4 - 0.2) / 2)
    assert metrics.forward_transfer(A, BASELINE) == pytest.approx((0.2 + 0.15) / 2)
    assert metrics.forgetting(A) == pytest.approx((0.4 + 0.2) / 2)
    joint = np.array([[0.95, 0, 0], [0, 0.9, 0], [0, 0, 0.8]])
    assert metrics.intransigence(A, joint) == pytest.approx((0.05 + 0.1 - 0.2) / 3)


def test_forgetting_is_not_negative_backward_transfer():
    a = A.copy()
    a[1, 0] = 0.95  # task 1 was best after task 2
    assert metrics.forgetting(a) == pytest.approx((0.45 + 0.2) / 2)
    assert metrics.backward_transfer(a) == metrics.backward_transfer(A)


def test_forgetting_looks_at_rows_before_the_task_was_trained():
    a = A.copy()
    a[0, 1] = 0.99
    assert metrics.forgetting(a) == pytest.approx((0.4 + 0.39) / 2)
    a[0, 1] = np.nan  # not measured: only the diagonal is left
    assert metrics.forgetting(a) == pytest.approx((0.4 + 0.2) / 2)


def test_leading_axes_are_kept_and_match_a_loop():
    a = np.random.default_rng(0).random((2, 3, 5, 5))
    b = np.random.default_rng(1).random((3, 5))
    joint = np.random.default_rng(2).random((2, 3, 5, 5))
    whole = {
        "average_accuracy": metrics.average_accuracy(a),
        "average_incremental_accuracy": metrics.average_incremental_accuracy(a),
        "backward_transfer": metrics.backward_transfer(a),
        "forgetting": metrics.forgetting(a),
        "forward_transfer": metrics.forward_transfer(a, b),
        "intransigence": metrics.intransigence(a, joint),
    }
    more = {
        "forward_transfer": lambda k, s: [b[s]],
        "intransigence": lambda k, s: [joint[k, s]],
    }
    for name, values in whole.items():
        assert values.shape == (2, 3)
        for k, s in np.ndindex(2, 3):
            args = more.get(name, lambda k, s: [])(k, s)
            assert values[k, s] == pytest.approx(getattr(metrics, name)(a[k, s], *args))


def test_one_task():
    a = np.array([[[0.7]], [[0.9]]])
    np.testing.assert_allclose(metrics.average_accuracy(a), [0.7, 0.9])
    np.testing.assert_allclose(metrics.average_incremental_accuracy(a), [0.7, 0.9])
    np.testing.assert_allclose(metrics.intransigence(a, a), [0, 0])
    for values in (
        metrics.backward_transfer(a),
        metrics.forgetting(a),
        metrics.forward_transfer(a, np.zeros((2, 1))),
    ):
        assert values.shape == (2,) and np.isnan(values).all()


@pytest.mark.parametrize("entry", [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)])
def test_a_missing_entry_makes_only_its_own_seed_nan(entry):
    a = np.stack([A, A])
    a[0][entry] = np.nan
    assert np.isnan(metrics.forgetting(a)[0])
    assert metrics.forgetting(a)[1] == pytest.approx(0.3)
    on_the_way = entry in [(0, 0), (1, 1), (2, 0), (2, 1)]
    assert np.isnan(metrics.backward_transfer(a)[0]) == on_the_way
    assert np.isnan(metrics.average_accuracy(a)[0]) == (entry[0] == 2)
    # What lies above the diagonal, of tasks not trained yet, is not read.
    assert np.isnan(metrics.average_incremental_accuracy(a)[0])
    a[0] = np.where(np.tril(np.ones((3, 3), bool)), A, np.nan)
    np.testing.assert_allclose(
        metrics.average_incremental_accuracy(a)[0],
        metrics.average_incremental_accuracy(A),
    )


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 4, 3), (0, 0), ()])
def test_matrix_shape_is_quoted(shape):
    for call in (
        metrics.average_accuracy,
        metrics.average_incremental_accuracy,
        metrics.backward_transfer,
        metrics.forgetting,
        lambda a: metrics.forward_transfer(a, BASELINE),
        lambda a: metrics.intransigence(A, a),
    ):
        with pytest.raises(ValueError) as error:
            call(np.zeros(shape))
        assert str(shape) in str(error.value)


def test_other_shapes_are_quoted():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3, 3\)"):
        metrics.forward_transfer(A, [0.1, 0.1])
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 3, 3\)"):
        metrics.forward_transfer(np.zeros((4, 3, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(\)"):
        metrics.forward_transfer(A, 0.1)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 2\)"):
        metrics.intransigence(A, np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        statistics.interval([[1, 2]])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        statistics.paired_test([1, 2], [1, 2, 3])


def test_interval_by_hand():
    # mean 4, deviations -2, 0, 2: variance 8 / 2; t(0.975, 2) = 4.30265.
    i = statistics.interval([2.0, math.nan, 4.0, 6.0])
    assert (i.mean, i.std, i.minimum, i.maximum, i.n, i.failed) == (4, 2, 2, 6, 3, 1)
    half = 4.302652729911275 * 2 / math.sqrt(3)
    assert (i.low95, i.high95) == pytest.approx((4 - half, 4 + half))


def test_interval_is_scipys():
    x = np.random.default_rng(0).normal(size=7)
    i = statistics.interval(x)
    expected = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    assert (i.low95, i.high95) == pytest.approx(expected)


def test_an_interval_ends_where_the_scale_does():
    # mean .9, std .1, t(0.975, 2) = 4.30265: .9 ± .248 reaches above 1.
    whole = statistics.interval([0.8, 0.9, 1.0])
    i = statistics.interval([0.8, 0.9, 1.0], lowest=0, highest=1)
    assert whole.high95 > 1.1 and i.high95 == 1
    assert i._replace(high95=whole.high95) == whole
    below = statistics.interval([-1.0, -0.9, -0.8], lowest=-1, highest=1)
    assert below.low95 == -1 and below.high95 == pytest.approx(-0.9 + 0.2484, abs=1e-4)
    # A mean that rounding moved past the end still gives a valid interval.
    assert statistics.interval([1 + 1e-8] * 2, lowest=0, highest=1).high95 == 1
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        statistics.interval([0.5, 1.5], lowest=0, highest=1)


def test_interval_of_too_little():
    one = statistics.interval([0.5, math.nan])
    assert (one.mean, one.minimum, one.maximum) == (0.5, 0.5, 0.5)
    assert (one.n, one.failed) == (1, 1)
    assert all(map(math.isnan, (one.std, one.low95, one.high95)))
    for values, failed in (([], 0), ([math.nan] * 2, 2)):
        none = statistics.interval(values)
        assert all(map(math.isnan, none[:6])) and none[6:] == (0, failed)


def test_paired_test_by_hand():
    # d = 1, 2, 3: t = 2 / (1 / sqrt(3)) with 2 degrees of freedom.
    result = statistics.paired_test([2, 4, 6, math.nan, 1], [1, 2, 3, 4, math.nan])
    assert (result.difference, result.n) == (2, 3)
    t = 2 * math.sqrt(3)
    # The closed form of Student's distribution function for 2 degrees of freedom.
    assert result.p == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_paired_test_is_scipys_and_ignores_what_pairs_share():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=6), rng.normal(size=6)
    p = statistics.paired_test(x, y).p
    assert p == pytest.approx(stats.ttest_rel(x, y).pvalue)
    shared = 100 * rng.normal(size=6)
    assert statistics.paired_test(x + shared, y + shared).p == pytest.approx(p)


def test_paired_test_of_alike_differences():
    x = np.array([0.1, 0.2, 0.7])
    assert statistics.paired_test(x, x) == (1, 0, 3)
    assert statistics.paired_test([0, 0], [0, 0]) == (1, 0, 2)
    # 0.1 + 0.1, 0.2 + 0.1 and 0.7 + 0.1 differ from 0.1 by rounding only, here that of
    # float32.
    for y in (x + 0.1, np.float32(x) + np.float32(0.1)):
        assert statistics.paired_test(y, x).p == 0


def test_paired_test_of_too_little():
    one = statistics.paired_test([0.5, math.nan], [0.25, 1])
    assert math.isnan(one.p) and one[1:] == (0.25, 1)
    none = statistics.paired_test([math.nan], [1])
    assert math.isnan(none.p) and math.isnan(none.difference) and none.n == 0
