"""How far features and weights have moved."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.features.matrix import array, or_one
from jaxcl.ops.matching import require_same_shapes
from jaxcl.types import PyTree


def feature_drift(before: jax.Array, after: jax.Array) -> jax.Array:
    """How far the features of the same examples have moved, relative to their size.

    ‖Y − X‖_F / ‖X‖_F. Unlike CKA it detects rotations, which a fixed head cannot
    follow.

    Args:
      before: X, float[N, ...].
      after: Y, of the same shape.

    Returns:
      float32[]; NaN if X is 0.

    Raises:
      ValueError: the shapes differ.
    """
    before, after = array(before), array(after)
    if before.shape != after.shape:
        raise ValueError(
            f"drift is of the same examples' features, got {before.shape} and "
            f"{after.shape}"
        )
    x, y = (jnp.asarray(v, jnp.float32) for v in (before, after))
    size = or_one(jnp.abs(x).max(initial=0))  # squares of small numbers would be 0
    x, y = x / size, y / size
    norm = jnp.linalg.norm(x.ravel())
    moved = jnp.linalg.norm((y - x).ravel())
    return jnp.where(norm > 0, moved / or_one(norm), jnp.nan)


def weight_drift(before: PyTree, after: PyTree) -> PyTree:
    """How far each array of parameters has moved, relative to its size.

    Args:
      before: a tree of arrays.
      after: a tree of the same structure and shapes.

    Returns:
      The tree with ‖W' − W‖ / ‖W‖, float32[], in place of each W; NaN where W is 0.

    Raises:
      ValueError: trees that do not fit each other.
    """
    require_same_shapes("after", after, "before", before)
    return jax.tree.map(feature_drift, before, after)
