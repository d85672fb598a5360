"""How similar the features of two networks, or of two layers, are."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxcl.features.matrix import centred, flat, or_one
from jaxcl.ops.linalg import EXACT


def linear_cka(x: jax.Array, y: jax.Array, *, debiased: bool = False) -> jax.Array:
    """Linear centred kernel alignment of two sets of features of the same examples.

    With X and Y centred, K = XXᵀ and L = YYᵀ,

        CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),  HSIC(K, L) = tr(KL) = ‖XᵀY‖_F²,

    debiased with the unbiased estimator of Song et al. (2012), whose K and L have
    zeros on the diagonal (K̃, L̃):

        HSIC₁ = [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2·1ᵀK̃L̃1/(n−2)] / (n(n−3)).

    It is 1 for Y = cXQ with Q orthogonal and c ≠ 0. With few examples in many
    dimensions, the plain form is far above 0 even for unrelated features.

    Args:
      x: float[N, ...] features of N examples; later axes are flattened.
      y: float[N, ...] features of the same examples in the same order.
      debiased: whether to use the unbiased estimator; it may be negative.

    Returns:
      float32[]; 0 if a denominator is not positive (constant features).

    Raises:
      ValueError: different numbers of examples; debiased with fewer than 4.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxcl.features import linear_cka
      >>> x = jax.random.normal(jax.random.key(0), [50, 3])
      >>> round(float(linear_cka(x, 2 * x[:, ::-1])), 4)
      1.0

    Source: Kornblith et al., Similarity of neural network representations revisited,
    ICML 2019, https://arxiv.org/abs/1905.00414; Nguyen et al., Do wide and deep
    networks learn the same things?, ICLR 2021, https://arxiv.org/abs/2010.15327.
    """
    x, y = flat(x), flat(y)
    n = x.shape[0]
    if n != y.shape[0]:
        raise ValueError(
            f"CKA compares the same examples, got {n} and {y.shape[0]} of them"
        )
    if debiased and n < 4:
        raise ValueError(f"debiased CKA needs at least 4 examples, got {n}")
    return _linear_cka(x, y, debiased)


@partial(jax.jit, static_argnums=2)
def _linear_cka(x: jax.Array, y: jax.Array, debiased: bool) -> jax.Array:
    x, y = _of_norm_one(x), _of_norm_one(y)
    hsic = _unbiased if debiased else _overlap
    xy, xx, yy = hsic(x, y), hsic(x, x), hsic(y, y)
    unknown = (xx <= 0) | (yy <= 0)
    return jnp.where(unknown, 0, xy / jnp.sqrt(or_one(xx)) / jnp.sqrt(or_one(yy)))


def _of_norm_one(x: jax.Array) -> jax.Array:
    """Centred and scaled, so that no square underflows; constant features are 0."""
    x = centred(x / or_one(jnp.abs(x).max()))
    x = x - x.mean(axis=0)  # what rounding of a large mean left
    return x / or_one(jnp.linalg.norm(x))


def _overlap(x: jax.Array, y: jax.Array) -> jax.Array:
    """‖XᵀY‖_F² = tr(XXᵀYYᵀ), by the smaller of the two products."""
    n = x.shape[0]
    if x.shape[1] * y.shape[1] <= n * n:
        return jnp.sum(jnp.square(jnp.matmul(x.T, y, precision=EXACT)))
    return jnp.sum(
        jnp.matmul(x, x.T, precision=EXACT) * jnp.matmul(y, y.T, precision=EXACT)
    )


def _unbiased(x: jax.Array, y: jax.Array) -> jax.Array:
    """n(n − 3) HSIC₁ of centred X and Y.

    The rows of K add up to 0, those of K̃ to −k, with k the diagonal of K. So
    tr(K̃L̃) = tr(KL) − kᵀl, 1ᵀK̃L̃1 = kᵀl and 1ᵀK̃1 = −1ᵀk.
    """
    n = len(x)
    k, u = jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1)
    means = k.sum() * u.sum() / ((n - 1) * (n - 2))
    return _overlap(x, y) - n / (n - 2) * jnp.sum(k * u) + means
