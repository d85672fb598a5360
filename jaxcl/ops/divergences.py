"""How far a network's outputs are from given ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl import schema
from jaxcl.ops.matching import require_same_shapes
from jaxcl.ops.trees import wide


def soft_divergence(
    logits: jax.Array,
    target: jax.Array,
    *,
    temperature: float,
    mask: jax.Array,
    weight: jax.Array,
    target_mask: jax.Array | None = None,
) -> jax.Array:
    """Divergence of softened predictions, over groups of outputs at once.

    D = τ² Σ_b w_b Σ_g KL(softmax_g(target_b/τ) ‖ softmax_g(z_b/τ)) / Σ_b w_b,
    softmax_g is the softmax over the outputs of group g alone. τ² keeps the gradient's
    scale whatever the temperature.

    Args:
      logits: float[B, K], z.
      target: float[B, K].
      temperature: τ > 0.
      mask: bool[G, K], the groups; a group without outputs adds nothing.
      weight: float[B], w.
      target_mask: bool[G, K], the outputs of each group that the target has; in the
        target, all others have probability 0. By default all outputs of the group.

    Returns:
      A scalar, 0 where the two distributions agree.

    Raises:
      ValueError: the temperature is not above 0; a shape differs from [B, K] or [B].
    """
    schema.require("temperature", temperature, schema.Positive)
    _require_rows(logits, target, weight)
    given = mask if target_mask is None else mask & target_mask

    def log_softmax(z: jax.Array, mask: jax.Array) -> jax.Array:
        z = jnp.where(mask, z[:, None] / temperature, -jnp.inf)
        top = jax.lax.stop_gradient(jnp.max(z, -1, keepdims=True, initial=-1e30))
        z = jnp.where(mask, z - top, 0)
        total = jnp.sum(jnp.where(mask, jnp.exp(z), 0), -1, keepdims=True)
        return z - jnp.log(jnp.where(total > 0, total, 1))

    p, q = log_softmax(wide(target), given), log_softmax(wide(logits), mask)
    each = jnp.sum(jnp.where(given, jnp.exp(p) * (p - q), 0), (1, 2))
    return temperature**2 * _mean(each, weight)


def squared_error(
    logits: jax.Array, target: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """Weighted mean over examples and outputs: Σ_b w_b ‖z_b − target_b‖² / (K Σ_b w_b).

    Args:
      logits: float[B, K], z.
      target: float[B, K].
      weight: float[B], w; by default 1 each. If none is above 0, the result is 0.

    Returns:
      A scalar.

    Raises:
      ValueError: a shape differs from [B, K] or [B].
    """
    weight = jnp.ones(logits.shape[:1]) if weight is None else weight
    _require_rows(logits, target, weight)
    each = jnp.mean((wide(logits) - target) ** 2, axis=-1)
    return _mean(each, weight)


def _require_rows(logits: jax.Array, target: jax.Array, weight: jax.Array) -> None:
    """Refuses shapes that would broadcast."""
    require_same_shapes("target", target, "the logits", logits)
    rows = logits[:, 0] if jnp.ndim(logits) == 2 else logits
    require_same_shapes("weight", weight, "the logits' examples", rows)


def _mean(each: jax.Array, weight: jax.Array) -> jax.Array:
    """Σ_b w_b each_b / Σ_b w_b; 0 if no weight is above 0."""
    of = weight.sum()
    return jnp.sum(each * weight) / jnp.where(of > 0, of, 1)
