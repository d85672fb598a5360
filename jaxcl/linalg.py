"""Arithmetic on pytrees that strategies share."""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp

from jaxcl.types import PyTree


def tree_quadratic(weight: PyTree, difference: PyTree) -> jax.Array:
    """Σᵢ wᵢ dᵢ² over all leaves.

    Args:
      weight: a tree of arrays.
      difference: a tree of the same structure and shapes.

    Returns:
      A scalar, 0 for an empty tree.
    """
    # A dot product, not a sum: XLA's CPU backend vectorises only the former.
    terms = jax.tree.map(lambda w, d: jnp.vdot(w * d, d), weight, difference)
    return reduce(jnp.add, jax.tree.leaves(terms), jnp.zeros(()))


def tree_where(condition: jax.Array, then: PyTree, otherwise: PyTree) -> PyTree:
    """Chooses whole trees by a scalar bool."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)
