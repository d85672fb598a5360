"""Arithmetic on whole trees of arrays, and sums that round alike wherever they run."""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp

from jaxcl.types import PyTree


def total(values: jax.Array) -> jax.Array:
    """Σ values, added up as a tree of halves.

    v ← v[:n/2] + v[n/2:], again and again: the order of the additions is in the
    program. Of `jnp.sum` the compiler chooses it, and chooses otherwise for the same
    sum among other operations, so that a seed alone would not equal itself beside
    others. It is more exact too: the error grows with log n, not with n.

    Args:
      values: float[n], n ≥ 1.

    Returns:
      A scalar of the same dtype.
    """
    n = values.shape[0]
    while n > 1:
        half = (n + 1) // 2
        values = values[:half] + jnp.pad(values[half:], (0, 2 * half - n))
        n = half
    return values[0]


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


def tree_dot(a: PyTree, b: PyTree) -> jax.Array:
    """⟨a, b⟩ = Σᵢ aᵢ bᵢ over all leaves.

    Args:
      a: a tree of arrays.
      b: a tree of the same structure and shapes.

    Returns:
      A scalar, 0 for an empty tree.
    """
    # Flat: of higher-rank arguments XLA's CPU backend makes a slow loop.
    terms = jax.tree.map(lambda x, y: jnp.dot(x.ravel(), y.ravel()), a, b)
    return reduce(jnp.add, jax.tree.leaves(terms), jnp.zeros(()))


def tree_copy(tree: PyTree) -> PyTree:
    """The same values in buffers of their own, so that either tree may be donated."""
    return jax.tree.map(jnp.copy, tree)


def tree_where(condition: jax.Array, then: PyTree, otherwise: PyTree) -> PyTree:
    """Chooses whole trees by a scalar bool."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)
