"""Continual-learning metrics of an accuracy matrix, and statistics over seeds.

``A[..., i, j]`` is the accuracy on task j after training task i, both from 0, T tasks.
Leading axes (seeds) are kept. An entry a metric needs and that is NaN makes that
metric NaN: a seed that failed is never averaged away here; `interval` counts it.
"""

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


def average_accuracy(matrix: ArrayLike) -> Array:
    """ACC: the mean accuracy on all tasks at the end.

    ACC = mean_j A[T−1, j]. Lopez-Paz & Ranzato 2017 (GEM).

    Args:
      matrix: accuracies [..., T, T].

    Returns:
      [...].

    Raises:
      ValueError: the last two axes are not square, or T = 0.
    """
    return _matrix(matrix)[..., -1, :].mean(axis=-1)


def backward_transfer(matrix: ArrayLike) -> Array:
    """BWT: what later tasks did to earlier ones; negative where they were forgotten.

    BWT = mean_{j<T−1} (A[T−1, j] − A[j, j]); NaN for T = 1.
    Lopez-Paz & Ranzato 2017 (GEM).

    Args:
      matrix: accuracies [..., T, T].

    Returns:
      [...].

    Raises:
      ValueError: the last two axes are not square, or T = 0.
    """
    a = _matrix(matrix)
    return _mean(a[..., -1, :-1] - _diagonal(a)[..., :-1])


def forward_transfer(matrix: ArrayLike, baseline: ArrayLike) -> Array:
    """FWT: what earlier tasks did for one not trained yet, over random initialisation.

    FWT = mean_{j>0} (A[j−1, j] − b_j); NaN for T = 1.
    Lopez-Paz & Ranzato 2017 (GEM).

    Args:
      matrix: accuracies [..., T, T]; the entries right above the diagonal are used.
      baseline: b, accuracies at random initialisation [..., T].

    Returns:
      [...], the leading axes of both arguments broadcast.

    Raises:
      ValueError: the matrix is not square, T = 0, or the baseline does not fit it.
    """
    a, b = _matrix(matrix), np.asarray(baseline, float)
    try:
        if b.ndim == 0 or b.shape[-1] != a.shape[-1]:
            raise ValueError
        np.broadcast_shapes(a.shape[:-2], b.shape[:-1])
    except ValueError:
        raise ValueError(
            f"baseline must be [..., T], an accuracy per task, fitting the matrix; got "
            f"baseline {b.shape} for matrix {a.shape}"
        ) from None
    return _mean(np.diagonal(a, 1, -2, -1) - b[..., 1:])


def forgetting(matrix: ArrayLike) -> Array:
    """Forgetting: the best a task ever was before the last one, less what is left.

    F = mean_{j<T−1} (max_{i<T−1} A[i, j] − A[T−1, j]); NaN for T = 1. The maximum runs
    over *every* earlier row, those before task j was trained too. Such an entry above
    the diagonal may be NaN (not measured) and is then left out of the maximum.
    Chaudhry et al. 2018 (RWalk).

    Args:
      matrix: accuracies [..., T, T].

    Returns:
      [...].

    Raises:
      ValueError: the last two axes are not square, or T = 0.
    """
    a = _matrix(matrix)
    past = a[..., :-1, :-1]
    if past.size == 0:
        return np.full(a.shape[:-2], np.nan)
    trained = np.tril(np.ones(past.shape[-2:], bool))
    lost = np.isnan(past).any(axis=-2, where=trained)
    best = np.where(lost, np.nan, np.fmax.reduce(past, axis=-2))
    return _mean(best - a[..., -1, :-1])


def intransigence(matrix: ArrayLike, joint_matrix: ArrayLike) -> Array:
    """Intransigence: how far learning a task stays below joint training at that point.

    I = mean_j (A_joint[j, j] − A[j, j]), where row j of A_joint was trained on the data
    of tasks 0…j together. Chaudhry et al. 2018 (RWalk), who give it for each j; this is
    the mean over tasks.

    Args:
      matrix: accuracies [..., T, T].
      joint_matrix: accuracies of joint training, of the same shape.

    Returns:
      [...].

    Raises:
      ValueError: one is not square, T = 0, or the shapes differ.
    """
    a, joint = _matrix(matrix), _matrix(joint_matrix)
    if a.shape != joint.shape:
        raise ValueError(
            f"matrix and joint_matrix must have one shape, got {a.shape} and "
            f"{joint.shape}"
        )
    return (_diagonal(joint) - _diagonal(a)).mean(axis=-1)


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


def _matrix(matrix: ArrayLike) -> Array:
    a = np.asarray(matrix, float)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise ValueError(
            f"an accuracy matrix must be [..., T, T] with T >= 1, got shape {a.shape}"
        )
    return a


def _vector(values: ArrayLike, name: str) -> Array:
    x = np.asarray(values, float)
    if x.ndim != 1:
        raise ValueError(f"{name} must be [S], one per seed, got shape {x.shape}")
    return x


def _diagonal(a: Array) -> Array:
    return np.diagonal(a, 0, -2, -1)


def _mean(x: Array) -> Array:
    """Mean of the last axis; NaN, without numpy's warning, where that is empty."""
    return x.mean(axis=-1) if x.shape[-1] else np.full(x.shape[:-1], np.nan)
