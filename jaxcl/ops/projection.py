"""An array out of a subspace of its rows' space, and onto one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.ops.linalg import EXACT

GIVEN = ("basis", "projector")
"""What a subspace may be given as, see `remove`."""


def remove(update: jax.Array, subspace: jax.Array, given: str = "basis") -> jax.Array:
    """Removes from an array its component in a subspace of its rows' space.

    With G the array as a matrix [d, n], n its last axis: G − U (Uᵀ G) for a basis U,
    G − M G for a projector M.

    Args:
      update: [..., n] with d = the product of the leading axes; an HWIO kernel becomes
        [kh * kw * C, O].
      subspace: U [d, r], orthonormal columns and zero columns, or M [d, d].
      given: which, "basis" or "projector".

    Returns:
      An array like ``update``.

    Raises:
      ValueError: the subspace lies in a space of another dimension.
    """
    d = update.size // update.shape[-1] if update.ndim > 1 else 0
    shape = subspace.shape
    if subspace.ndim != 2 or shape[0] != d or (given == "projector" and shape[1] != d):
        raise ValueError(
            f"a {given} of shape {list(shape)} does not fit an array of shape "
            f"{list(update.shape)}, a matrix of {d} rows"
        )
    matrix = update.reshape(d, -1)
    inside = matrix
    if given == "basis":
        inside = jnp.matmul(subspace.T, inside, precision=EXACT)
    inside = jnp.matmul(subspace, inside, precision=EXACT)
    return (matrix - inside).reshape(update.shape)


def onto(update: jax.Array, projector: jax.Array) -> jax.Array:
    """P G, of an array as a matrix G [d, n], n its last axis.

    Args:
      update: [..., n] with d = the product of the leading axes.
      projector: P [d, d].

    Returns:
      An array like ``update``.

    Raises:
      ValueError: P lies in a space of another dimension.
    """
    d = update.size // update.shape[-1] if update.ndim > 1 else 0
    if projector.shape != (d, d):
        raise ValueError(
            f"a projector of shape {list(projector.shape)} does not fit an array of "
            f"shape {list(update.shape)}, a matrix of {d} rows"
        )
    moved = jnp.matmul(projector, update.reshape(d, -1), precision=EXACT)
    return moved.reshape(update.shape)
