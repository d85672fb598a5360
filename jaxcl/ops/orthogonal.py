"""How far a layer's outputs are from orthogonal: the orthogonal loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.ops.linalg import EXACT
from jaxcl.ops.trees import total

NORMS = ("spectral", "frobenius", "rows")
OF = ("examples", "features")
_SQUARINGS = 12


def top_eigenvalue(gram: jax.Array) -> jax.Array:
    """λ = max_v vᵀ G v / vᵀ v of a symmetric G ⪰ 0, by power iteration.

    v is a column of G^4096, which takes twelve products of matrices; the derivative is
    v vᵀ / vᵀ v, exact once v has converged. If the largest eigenvalue is not simple, it
    is one of the subgradients.

    Args:
      gram: float[n, n].

    Returns:
      A scalar of the same dtype, 0 for G = 0. No decomposition is used, so several
      calls may run at once on several devices.
    """
    power = gram
    for _ in range(_SQUARINGS):
        trace = jnp.trace(power)
        power = power / jnp.where(trace > 0, trace, 1)
        power = jnp.matmul(power, power, precision=EXACT)
    v = power[:, jnp.argmax(jnp.diagonal(power))]
    length = jnp.sqrt(jnp.vdot(v, v))
    v = jax.lax.stop_gradient(v / jnp.where(length > 0, length, 1))
    return jnp.vdot(v, jnp.matmul(gram, v, precision=EXACT), precision=EXACT)


def orthogonal_loss(
    y: jax.Array,
    *,
    norm: str = "spectral",
    of: str = "examples",
    weight: jax.Array | None = None,
) -> jax.Array:
    """How far the singular values of a layer's outputs are from being equal.

    With Y the outputs [B, D], flattened per example,

        spectral:   ‖Y Yᵀ / ‖Y‖₂² − I‖²_F / B,   ‖Y‖₂ the largest singular value
        frobenius:  ‖Y Yᵀ / ‖Y‖_F² − I‖²_F / B
        rows:       ‖Ŷ Ŷᵀ − I‖²_F / n,           each of the n rows of length 1

    For the first two forms, the kernel Y Yᵀ and the covariance Yᵀ Y give losses that
    differ only by a constant. For "rows" this is not so: the rows are the examples, or,
    with of="features", those of Yᵀ.

    Args:
      y: float[B, ...].
      norm: one of `NORMS`.
      of: one of `OF`; "features" goes with norm="rows".
      weight: float[B]; examples of weight 0 are ignored. By default none is.

    Returns:
      A scalar of y's dtype. Outputs that are all 0 have loss 1 in every form: a dead
      layer after a ReLU may be close to a minimum.

    Raises:
      ValueError: `norm` or `of` is not one of those allowed.

    Source: the "orthogonal loss" of https://github.com/Arnolily/Note, with its formula
    unchanged.
    """
    check_form(norm, of)
    y = y.reshape(y.shape[0], -1)
    real = jnp.ones(y.shape[0], y.dtype)
    if weight is not None:
        real = (weight > 0).astype(y.dtype)
        y = y * real[:, None]
    count = jnp.maximum(real.sum(), 1)  # without an example there is nothing to average
    if norm == "rows":
        axis = 1 if of == "examples" else 0
        square = jnp.sum(y * y, axis, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.where(square > 0, square, 1))
    gram = jnp.matmul(y, y.T, precision=EXACT)
    if norm != "rows":
        scale = top_eigenvalue(gram) if norm == "spectral" else jnp.trace(gram)
        gram = gram / jnp.where(scale > 0, scale, 1)
    if of == "features":  # ‖ŶᵀŶ − I‖² without a matrix [D, D]
        size = y.shape[1]
        return (total((gram * gram).ravel()) - 2 * jnp.trace(gram) + size) / size
    away = gram - jnp.diag(real)
    return total((away * away).ravel()) / count


def check_form(norm: str, of: str) -> None:
    """Raises a ValueError for an unknown form of the loss."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if of not in OF:
        raise ValueError(f"of must be one of {', '.join(OF)}, got {of!r}")
    if of == "features" and norm != "rows":
        raise ValueError(
            f"of='features' goes with norm='rows', got norm={norm!r}, whose loss it "
            "changes by a constant only"
        )
