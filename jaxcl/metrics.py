"""Continual-learning metrics of an accuracy matrix.

``A[..., i, j]`` is the accuracy on task j after training task i, both from 0, T tasks.
Leading axes (seeds) are kept. A metric is NaN if an entry that it needs is NaN: a
failed seed is never averaged away here; `jaxcl.statistics.interval` counts it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


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


def average_incremental_accuracy(matrix: ArrayLike) -> Array:
    """AIA: the accuracy on the tasks so far, averaged over the ends of all tasks.

    AIA = mean_i mean_{j≤i} A[i, j]. Rebuffi et al. 2017 (iCaRL), for steps of a
    class-incremental network; their accuracy after a step is over its test images, this
    one a mean over tasks, which is the same if all tasks have as many.

    Args:
      matrix: accuracies [..., T, T].

    Returns:
      [...].

    Raises:
      ValueError: the last two axes are not square, or T = 0.
    """
    a = _matrix(matrix)
    so_far = np.tril(np.ones(a.shape[-2:], bool))
    return a.mean(axis=-1, where=so_far).mean(axis=-1)


def backward_transfer(matrix: ArrayLike) -> Array:
    """BWT: the effect of later tasks on earlier ones; negative if these are forgotten.

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
    """FWT: the gain on a task before its training, over random initialisation.

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
    """Forgetting: a task's best accuracy before the last task, minus its final one.

    F = mean_{j<T−1} (max_{i<T−1} A[i, j] − A[T−1, j]); NaN for T = 1. The maximum runs
    over *every* earlier row, including those before task j was trained. Such an entry
    above the diagonal may be NaN (not measured) and is then left out of the maximum.
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
    """Intransigence: how far a task just learned stays below joint training.

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


def _matrix(matrix: ArrayLike) -> Array:
    a = np.asarray(matrix, float)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise ValueError(
            f"an accuracy matrix must be [..., T, T] with T >= 1, got shape {a.shape}"
        )
    return a


def _diagonal(a: Array) -> Array:
    return np.diagonal(a, 0, -2, -1)


def _mean(x: Array) -> Array:
    """Mean over the last axis; NaN, without numpy's warning, if the axis is empty."""
    return x.mean(axis=-1) if x.shape[-1] else np.full(x.shape[:-1], np.nan)
