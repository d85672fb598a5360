"""Features as a matrix, and their classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcl.checks import require_range
from jaxcl.inputs import class_numbers


def array(x: ArrayLike) -> jax.Array:
    """Anything that `jax.numpy.asarray` takes, lists too, as an array.

    Raises:
      ValueError: it does not take it, or the values are no numbers.
    """
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an array is needed, got a {type(x).__name__}") from error


def with_units(x: ArrayLike) -> jax.Array:
    """Features in their own shape, float32[N, ..., C].

    Raises:
      ValueError: there is no axis for units, or an axis is empty.
    """
    x = array(x)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"features must be [N, ..., D], none of them 0, got {x.shape}")
    return jnp.asarray(x, jnp.float32)


def flat(x: ArrayLike) -> jax.Array:
    """Features as a matrix, float32[N, D]: axes after the first become one."""
    x = with_units(x)
    return x.reshape(x.shape[0], -1)


def classes_of(x: jax.Array, y: ArrayLike) -> jax.Array:
    """The classes of examples, int[N], each one its own.

    Raises:
      ValueError: they are no vector of whole numbers, or of another length.
    """
    y = jnp.asarray(class_numbers(y))
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"features and classes must be of the same examples, got {x.shape[0]} and "
            f"{y.shape[0]}"
        )
    return y


def labelled(
    x: ArrayLike, y: ArrayLike, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Features as a matrix, and their classes in [0, K).

    Raises:
      ValueError: as `classes_of`; a class out of range, unless it is a tracer.
    """
    x = flat(x)
    y = classes_of(x, y)
    require_range("targets y", y, num_classes)
    return x, y


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


def power_of_two(x: jax.Array) -> jax.Array:
    """A power of 2 near the largest |x|, by which x is divided without rounding."""
    largest = jnp.abs(x).max()
    exponent = jnp.frexp(largest)[1] - 1
    exponent = jnp.clip(exponent, -126, 127)  # its inverse is a normal number, too
    known = jnp.isfinite(largest) & (largest > 0)
    return jnp.where(known, jnp.ldexp(jnp.ones_like(largest), exponent), 1)
