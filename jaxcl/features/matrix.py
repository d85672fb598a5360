"""Features as a matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def with_units(x: jax.Array) -> jax.Array:
    """Features in their own shape, float32[N, ..., C].

    Raises:
      ValueError: there is no axis for units, or an axis is empty.
    """
    if x.ndim < 2 or not x.size:
        raise ValueError(f"features must be [N, ..., D], none of them 0, got {x.shape}")
    return jnp.asarray(x, jnp.float32)


def flat(x: jax.Array) -> jax.Array:
    """Features as a matrix, float32[N, D]: axes after the first become one."""
    return with_units(x).reshape(x.shape[0], -1)


def centred(x: jax.Array) -> jax.Array:
    """A matrix [N, D] minus its columns' means; constant columns are exactly 0."""
    mean = x.mean(axis=0)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.abs(x).max(axis=0)
    # On a CPU the maximum of some numbers may ignore NaN.
    constant = (jnp.abs(x - mean).max(axis=0) <= rounding) & jnp.isfinite(mean)
    return jnp.where(constant, 0, x - mean)


def or_one(value: jax.Array) -> jax.Array:
    """Replaces 0 by 1, for a safe divisor or argument of a logarithm."""
    return jnp.where(value == 0, 1, value)
