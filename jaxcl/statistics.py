"""Statistics over seeds: an interval, a paired test. No seed is averaged away."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A sample's summary over its values that are not NaN.

    Attributes:
      mean: the mean; NaN if n = 0, like the minimum and the maximum.
      std: the standard deviation with ddof = 1; NaN if n < 2, like both bounds.
      low95: lower bound of the mean's 95 % interval.
      high95: upper bound of the mean's 95 % interval.
      minimum: the lowest value.
      maximum: the highest value.
      n: how many values were used.
      failed: how many values were NaN.
    """

    mean: float
    std: float
    low95: float
    high95: float
    minimum: float
    maximum: float
    n: int
    failed: int


class PairedTest(NamedTuple):
    """A two-sided paired t-test.

    Attributes:
      p: the p-value; NaN if n < 2.
      difference: mean of values − reference over the pairs; NaN if n = 0.
      n: how many pairs were finite on both sides.
    """

    p: float
    difference: float
    n: int


def interval(
    values: ArrayLike, *, lowest: float = -np.inf, highest: float = np.inf
) -> Interval:
    """Mean, spread and 95 % interval of a sample, NaN values counted as failed.

    mean ± t_{0.975, n−1} · std / √n, Student's t, cut at the ends of the scale. What is
    cut off holds no possible mean, so that the interval covers the mean as often as
    before. Near an end, where a sample is skewed, neither covers it in just 95 %.

    Args:
      values: one number per seed [S]; S = 0 is allowed.
      lowest: the least that a value can be: 0 for an accuracy, −1 for a difference of
        two.
      highest: the most that it can be.

    Returns:
      An `Interval`; what n values do not define is NaN.

    Raises:
      ValueError: values are not one-dimensional, or one lies off the scale by more
        than the rounding of float32.
    """
    values = _vector(values, "values")
    x = values[~np.isnan(values)]
    outside = x[(x < lowest - 1e-6) | (x > highest + 1e-6)]
    if outside.size:
        raise ValueError(
            f"values must lie in [{lowest:g}, {highest:g}], got {outside[0]:g}"
        )
    n, nan = x.size, float("nan")
    mean = float(x.mean()) if n else nan
    std = float(x.std(ddof=1)) if n > 1 else nan
    half = float(stats.t.ppf(0.975, n - 1)) * std / np.sqrt(n) if n > 1 else nan
    return Interval(
        mean=mean,
        std=std,
        low95=float(np.maximum(mean - half, lowest)),
        high95=float(np.minimum(mean + half, highest)),
        minimum=float(x.min()) if n else nan,
        maximum=float(x.max()) if n else nan,
        n=n,
        failed=values.size - n,
    )


def paired_test(values: ArrayLike, reference: ArrayLike) -> PairedTest:
    """Two-sided paired t-test of values against a reference, seed by seed.

    t = mean(d) / (std(d) / √n), d = values − reference. If all d are alike (to
    rounding) t is 0/0 or infinite: p is then 1 where d = 0, else its limit 0.

    Args:
      values: one number per seed [S].
      reference: the same seeds' numbers of the reference [S].

    Returns:
      A `PairedTest` over the seeds that are finite in both; p is NaN below 2 of them.

    Raises:
      ValueError: not one-dimensional, or of different lengths.
    """
    x, y = _vector(values, "values"), _vector(reference, "reference")
    if x.shape != y.shape:
        raise ValueError(
            f"a paired test needs one value and one reference per seed, got shapes "
            f"{x.shape} and {y.shape}"
        )
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    d, n = x - y, x.size
    difference = float(d.mean()) if n else float("nan")
    if n < 2:
        return PairedTest(float("nan"), difference, n)
    rounding = 4 * np.finfo(float).eps * np.abs([x, y]).max()
    if np.ptp(d) <= rounding:
        return PairedTest(float(abs(difference) <= rounding), difference, n)
    return PairedTest(float(stats.ttest_rel(x, y).pvalue), difference, n)


def _vector(values: ArrayLike, name: str) -> Array:
    x = np.asarray(values, float)
    if x.ndim != 1:
        raise ValueError(f"{name} must be [S], one per seed, got shape {x.shape}")
    return x
