"""Trees of arrays: arithmetic, typed keys, sums that always round in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.types import PyTree


def total(values: jax.Array) -> jax.Array:
    """Σ values, added up as a tree of halves.

    v ← v[:n/2] + v[n/2:], again and again: the program itself fixes the order of the
    additions. For `jnp.sum` the compiler chooses the order, and chooses another one for
    the same sum among other operations, so a seed that runs alone would differ from the
    same seed beside others. This sum is also more exact: the error grows with log n,
    not with n.

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


ROW = 2048
"""Numbers that are added side by side in `summed`; they fit into a core's cache."""


def summed(term: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Σᵢ term(aᵢ, bᵢ, …) over the elements of arrays of one shape.

    XLA's CPU backend adds the terms of a sum, or of a dot product, one after another:
    over all parameters of an MLP that takes half as long as BP's whole step. Here, on a
    CPU, a row of `ROW` sums takes `ROW` terms at a time, in an order that is fixed as
    in `total`. Accelerators take XLA's own sum.

    Args:
      term: of elements, ``(a, b, …) -> array`` of the shape of its arguments.
      *arrays: of one shape and dtype.

    Returns:
      A scalar of the terms' dtype.
    """

    def by_rows(*flat: jax.Array) -> jax.Array:
        n = flat[0].size
        whole = n // ROW * ROW
        if whole <= ROW:
            return total(term(*flat)) if n else jnp.sum(term(*flat))

        def add(i, sums):
            cut = (jax.lax.dynamic_slice_in_dim(f, i * ROW, ROW) for f in flat)
            return sums + term(*cut)

        rest = jnp.pad(term(*(f[whole:] for f in flat)), (0, whole + ROW - n))
        return total(jax.lax.fori_loop(0, whole // ROW, add, rest))

    flat = [a.ravel() for a in arrays]
    return jax.lax.platform_dependent(
        *flat, cpu=by_rows, default=lambda *flat: jnp.sum(term(*flat))
    )


def wide(x: jax.Array) -> jax.Array:
    """An array in float32 at least, for sums and statistics."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def zeros_wide(tree: PyTree) -> PyTree:
    """Zeros like a tree's leaves, in float32 at least."""
    return jax.tree.map(lambda x: jnp.zeros_like(wide(x)), tree)


def anchored(tree: PyTree) -> PyTree:
    """The same values in buffers of their own, in float32 at least."""
    return jax.tree.map(lambda x: jnp.copy(wide(x)), tree)


def tree_quadratic(weight: PyTree, difference: PyTree) -> jax.Array:
    """Σᵢ wᵢ dᵢ² over all leaves.

    Args:
      weight: a tree of arrays.
      difference: a tree of the same structure and shapes.

    Returns:
      A scalar, 0 for an empty tree; float32 at least, as the arithmetic is.
    """

    terms = jax.tree.map(lambda w, d: _quadratic(wide(w), wide(d)), weight, difference)
    return reduce(jnp.add, jax.tree.leaves(terms), jnp.zeros(()))


@jax.custom_jvp
def _quadratic(w: jax.Array, d: jax.Array) -> jax.Array:
    return summed(lambda w, d: w * d * d, w, d)


@_quadratic.defjvp
def _of_quadratic(primals, tangents):
    # By rule, so that the gradient does not read what the value has written out: EWC's
    # step takes an eighth less time. The same terms as derived, to the same last digit.
    (w, d), (dw, dd) = primals, tangents
    change = jnp.vdot(w * d, dd) + jnp.vdot(w * dd, d) + jnp.vdot(dw * d, d)
    return _quadratic(w, d), change


def tree_dot(a: PyTree, b: PyTree) -> jax.Array:
    """⟨a, b⟩ = Σᵢ aᵢ bᵢ over all leaves.

    Args:
      a: a tree of arrays.
      b: a tree of the same structure and shapes.

    Returns:
      A scalar, 0 for an empty tree; float32 at least, as the arithmetic is.
    """

    terms = jax.tree.map(lambda x, y: summed(jnp.multiply, wide(x), wide(y)), a, b)
    return reduce(jnp.add, jax.tree.leaves(terms), jnp.zeros(()))


def leaf_names(path: Sequence[Any]) -> tuple[str, ...]:
    """A leaf's path, as `jax.tree_util` gives it, in plain names.

    Names are the keys of dicts, the names of fields and the numbers in lists:
    ("layers", "2", "weight") for ``tree.layers[2].weight``, in any containers.
    """
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def starts_with(path: tuple[str, ...], prefixes: Sequence[Sequence[Any]]) -> bool:
    """Whether a leaf's path begins with one of the prefixes; numbers count as names."""
    return any(path[: len(p)] == tuple(map(str, p)) for p in prefixes)


def tree_copy(tree: PyTree) -> PyTree:
    """The same values in buffers of their own, so that either tree may be donated."""
    return jax.tree.map(jnp.copy, tree)


def tree_where(condition: jax.Array, then: PyTree, otherwise: PyTree) -> PyTree:
    """Chooses whole trees by a scalar bool."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)


def without_keys(tree: PyTree) -> PyTree:
    """Host arrays of a tree's leaves; typed keys become their data, uint32."""
    return jax.tree.map(
        lambda a: np.asarray(jax.random.key_data(a) if is_key(a) else a), tree
    )


def with_keys(tree: PyTree, like: PyTree) -> PyTree:
    """Inverse of `without_keys`; typed keys are where `like` has them."""
    return jax.tree.map(
        lambda a, b: jax.random.wrap_key_data(a) if is_key(b) else np.asarray(a),
        tree,
        like,
    )


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed keys, as `jax.random.key` makes them."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def summed_like(gradient: jax.Array, of: jax.Array) -> jax.Array:
    """A gradient summed over the devices that share what it is of.

    In `jax.shard_map` a kernel may be the same on all devices and its gradient, of each
    device's own examples, not; a backward rule of one's own has to add them up, as
    JAX's rules do. Elsewhere nothing is summed.
    """
    axes = _varies_over(gradient) - _varies_over(of)
    return jax.lax.psum(gradient, tuple(axes)) if axes else gradient


def _varies_over(x: jax.Array) -> frozenset[str]:
    """The manual axes over which an array differs; JAX has renamed the attribute."""
    kind = jax.typeof(x)
    kept = getattr(kind, "manual_axis_type", None)
    return kept.varying if kept else getattr(kind, "vma", frozenset())
