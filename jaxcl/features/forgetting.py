"""How much of the learned is forgotten, in the features and in the outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxcl.schema import Positive, require

LEAST_GAIN = 0.02


def representation_forgetting(probed: ArrayLike) -> NDArray[np.float64]:
    """How much less accurately probes read tasks from the features at the end.

    mean_{j < T} (R[j, j] − R[T, j]) for tasks 1 … T, with R[i, j] the accuracy on task
    j of a probe fitted to the features after task i.

    Args:
      probed: R [..., T + 1, T], accuracies in [0, 1]; row 0 is the untrained network.

    Returns:
      [...]; NaN for T = 1, or if a needed entry is NaN.

    Raises:
      ValueError: R has another shape.

    Source: Davari et al., Probing representation forgetting in supervised and
    unsupervised continual learning, CVPR 2022, https://arxiv.org/abs/2203.13381.
    """
    r = _probed(probed)
    own = np.diagonal(r, -1, -2, -1)
    each = (own - r[..., -1, :])[..., :-1]
    return each.mean(-1) if each.shape[-1] else np.full(r.shape[:-2], np.nan)


def lost_share(
    probed: ArrayLike, least_gain: float = LEAST_GAIN
) -> NDArray[np.float64]:
    """The lost share of the accuracy that a task gained by its own training.

    (R[j, j] − R[T, j]) / (R[j, j] − R[j−1, j]) for each task j of 1 … T. A probe's R
    measures the features; with the baseline b as row 0 over the accuracy matrix A,
    ``np.concatenate([b[..., None, :], A], axis=-2)``, it measures the network's head.

    Args:
      probed: R [..., T + 1, T], accuracies in [0, 1]; row 0 is the untrained network.
      least_gain: below this gain the share is meaningless and NaN.

    Returns:
      [..., T]; 0 for the last task, if it gained enough.

    Raises:
      ValueError: R has another shape, or least_gain is not positive.

    Source: Hess et al., Knowledge accumulation in continually learned representations
    and the issue of feature forgetting, 2023, https://arxiv.org/abs/2304.00933, who
    state that features forget newly learned information just as outputs do.
    """
    require("least_gain", least_gain, Positive)
    r = _probed(probed)
    own, before = np.diagonal(r, -1, -2, -1), np.diagonal(r, 0, -2, -1)
    gain = own - before
    enough = gain >= least_gain
    lost = own - r[..., -1, :]
    return np.where(enough, lost / np.where(enough, gain, 1), np.nan)


def _probed(probed: ArrayLike) -> NDArray[np.float64]:
    r = np.asarray(probed, float)
    if r.ndim < 2 or r.shape[-2] != r.shape[-1] + 1 or not r.shape[-1]:
        raise ValueError(
            f"probe accuracies must be [..., T + 1, T] with T >= 1, got shape {r.shape}"
        )
    return r
