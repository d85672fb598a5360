"""Class means and one covariance shared by all classes, updated in one pass.

Also the linear classifiers that follow from them in closed form.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require
from jaxcl.ops.decompositions import one_at_a_time
from jaxcl.ops.linalg import EXACT


class ClassMeans(NamedTuple):
    """The mean of each class's features so far."""

    count: jax.Array  # float32[K] examples seen of each class
    mean: jax.Array  # float32[K, D]; 0 for a class not seen yet


class LinearHead(NamedTuple):
    """A linear classifier: logits (x − centre) W + b."""

    weights: jax.Array  # float32[D, K]
    bias: jax.Array  # float32[K]; the lowest finite value for a class never seen
    centre: jax.Array  # float32[D], the mean of all examples seen


def no_means(num_classes: int, width: int) -> ClassMeans:
    """The class means before any example.

    Args:
      num_classes: K.
      width: D.
    """
    return ClassMeans(jnp.zeros((num_classes,)), jnp.zeros((num_classes, width)))


def absorb(
    means: ClassMeans, x: jax.Array, y: jax.Array, weight: jax.Array
) -> tuple[ClassMeans, jax.Array]:
    """Adds a batch to the means of its classes.

    With n_k examples of class k before, b_k of them in the batch and m̄_k the mean of
    these b_k:

        m_k ← m_k + b_k/(n_k + b_k) (m̄_k − m_k),  n_k ← n_k + b_k

    and S = Σᵢ (xᵢ − m_{yᵢ})(xᵢ − m_{yᵢ})ᵀ, the scatter within classes of all examples
    so far, grows by ZᵀZ, where Z has a row xᵢ − m̄_{yᵢ} per example and a row
    √(n_k b_k/(n_k + b_k)) (m̄_k − m_k) per class. Nothing is subtracted from S, so no
    digits are lost by cancellation and S stays positive semi-definite.

    Args:
      means: K classes, D features.
      x: float32[B, D].
      y: int32[B] classes.
      weight: float32[B], 1 for an example, 0 for one that is ignored.

    Returns:
      The new means and Z, float32[B + K, D].

    Source: Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for
    computing sample variances, 1979.
    """
    before, old = means
    member = jax.nn.one_hot(y, before.shape[0]) * weight[:, None]  # [B, K]
    added = member.sum(0)
    # Relative to the means so far, so that the summands are small.
    away = jnp.matmul(member.T, x - old[y], precision=EXACT)
    step = away / jnp.maximum(added, 1)[:, None]  # m̄ − m
    total = jnp.maximum(before + added, 1)
    within = (x - old[y] - step[y]) * jnp.sqrt(weight)[:, None]
    between = jnp.sqrt(before * added / total)[:, None] * step
    mean = old + (added / total)[:, None] * step
    return ClassMeans(before + added, mean), jnp.concatenate([within, between])


def half_gram(z: jax.Array, strips: int = 8) -> tuple[jax.Array, ...]:
    """The upper half of ZᵀZ, and little more, at about 0.6 of the whole cost.

    Args:
      z: float32[B, D].
      strips: into how many strips the rows of ZᵀZ are cut; more strips cost less, by
        ever smaller steps.

    Returns:
      Rows a … b − 1 of ZᵀZ from column a on, for each strip; sums over batches are
      taken strip by strip. `whole_gram` puts the strips together.
    """
    edges = [i * z.shape[1] // strips for i in range(strips + 1)]
    return tuple(
        jnp.matmul(z[:, a:b].T, z[:, a:], precision=EXACT)
        for a, b in pairwise(edges)
        if b > a
    )


def whole_gram(half: tuple[jax.Array, ...]) -> jax.Array:
    """float32[D, D], symmetric to the bit, from the strips of its upper half."""
    d = half[0].shape[1]
    rows = [jnp.pad(strip, ((0, 0), (d - strip.shape[1], 0))) for strip in half]
    upper = jnp.concatenate(rows)
    return jnp.triu(upper) + jnp.triu(upper, 1).T


def nearest_mean(means: ClassMeans) -> LinearHead:
    """The classifier by the nearest class mean: −½‖x − m_k‖² without the term −½‖x‖².

    Args:
      means: K classes, D features.

    Returns:
      W = (m − c)ᵀ, b_k = −½ ‖m_k − c‖² and c, the mean of all examples.

    Source: Mensink et al., Distance-based image classification: generalizing to new
    classes at near-zero cost, TPAMI 2013.
    """
    centred, centre = _centred(means)
    return _head(means, centred.T, centred, centre)


def discriminant(
    means: ClassMeans, scatter: jax.Array, shrinkage: float | jax.Array
) -> LinearHead:
    """Linear discriminant analysis with a covariance that all classes share.

    With Σ = S/N and A = (1 − ε) Σ + ε I:

        W = A⁻¹ (m − c)ᵀ,  b_k = −½ (m_k − c)ᵀ A⁻¹ (m_k − c)

    which gives −½ (x − m_k)ᵀ A⁻¹ (x − m_k) without the terms that all classes have in
    common. Taking features and means relative to c, the mean of all examples, changes
    no difference between logits and loses fewer digits.

    Args:
      means: K classes, D features.
      scatter: float32[D, D], S, within classes.
      shrinkage: ε in (0, 1]; may be traced.

    Returns:
      The classifier. A is factored by Cholesky, each matrix by itself (see
      `jaxcl.ops.decompositions`). ε I is raised to 8 u tr(Σ) I if that is larger, with
      u float32's unit of rounding: with less, rounding alone can make A indefinite;
      with it, A's condition is at most 1/(8 u), and weights are within 2e-2 of those in
      float64 where there are fewer examples than features, else within 1e-3.

    Raises:
      ValueError: a shrinkage that is a number outside (0, 1].

    Source: Hayes & Kanan, Lifelong machine learning with deep streaming linear
    discriminant analysis, CVPR workshops 2020, https://arxiv.org/abs/1909.01520.
    """
    require_shrinkage("discriminant", shrinkage)
    centred, centre = _centred(means)
    covariance = scatter / jnp.maximum(means.count.sum(), 1)
    rounding = 8 * jnp.finfo(scatter.dtype).eps * jnp.trace(covariance)
    ridge = jnp.maximum(shrinkage, rounding)
    a = (1 - shrinkage) * covariance + ridge * jnp.eye(scatter.shape[0])
    return _head(means, _solve(a, centred.T), centred, centre)


def logits(head: LinearHead, x: jax.Array) -> jax.Array:
    """(x − centre) W + b, float32[B, K] of features [B, D]."""
    return jnp.matmul(x - head.centre, head.weights, precision=EXACT) + head.bias


def require_shrinkage(method: str, shrinkage: float | jax.Array) -> None:
    """Refuses a shrinkage that is a number outside (0, 1]."""
    message = f"{method}: shrinkage must lie in (0, 1], got {shrinkage}"
    require(shrinkage > 0, message)
    require(shrinkage <= 1, message)


def _centred(means: ClassMeans) -> tuple[jax.Array, jax.Array]:
    """m − c [K, D], 0 for a class not seen yet, and c [D]."""
    count, mean = means
    share = count / jnp.maximum(count.sum(), 1)
    centre = jnp.matmul(share, mean, precision=EXACT)
    return jnp.where(count[:, None] > 0, mean - centre, 0), centre


def _head(means: ClassMeans, weights, centred, centre) -> LinearHead:
    bias = -0.5 * jnp.sum(centred * weights.T, axis=1)
    # Below what any class seen gets, above what no answer may have (`jaxcl.heads`):
    # where a task has no class seen, one of its own is still the answer.
    lowest = jnp.finfo(bias.dtype).min / 2
    return LinearHead(weights, jnp.where(means.count > 0, bias, lowest), centre)


@one_at_a_time
def _solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """A⁻¹ B of a positive definite matrix."""
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a, lower=True), b)
