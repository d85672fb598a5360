"""Projects an array out of a subspace of its inputs' space, or onto one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.ops.linalg import EXACT
from jaxcl.ops.trees import tree_dot
from jaxcl.types import PyTree

GIVEN = ("basis", "projector")
"""The forms in which a subspace may be given; see `remove`."""


AXES = (-1, 0)
"""The axes of a kernel that may run over its outputs: [..., n] or [n, ...]."""


def remove(
    update: jax.Array, subspace: jax.Array, given: str = "basis", axis: int = -1
) -> jax.Array:
    """Removes from an array its component in a subspace of its inputs' space.

    With G the array as a matrix [d, n] of d inputs and n outputs: G − U (Uᵀ G) for a
    basis U, G − M G for a projector M.

    Args:
      update: [..., n] with d = the product of the leading axes; an HWIO kernel becomes
        [kh * kw * C, O]. With axis=0 [n, ...]: an OIHW kernel's d is C * kh * kw.
      subspace: U [d, r], orthonormal columns and zero columns, or M [d, d], symmetric.
      given: the form of ``subspace``, "basis" or "projector".
      axis: the axis of ``update`` over the outputs, -1 or 0.

    Returns:
      An array like ``update``, in its dtype; the products are float32 at least.

    Raises:
      ValueError: the subspace lies in a space of another dimension; a wrong axis.
    """
    d = _inputs(update, axis)
    shape = subspace.shape
    if subspace.ndim != 2 or shape[0] != d or (given == "projector" and shape[1] != d):
        raise ValueError(
            f"a {given} of shape {list(shape)} does not fit an array of shape "
            f"{list(update.shape)}, a matrix of {d} rows{_hint(update, shape, axis)}"
        )
    wide = jnp.promote_types(update.dtype, jnp.float32)
    if axis == 0:
        matrix = update.reshape(-1, d).astype(wide)
        inside = matrix
        if given == "basis":
            inside = jnp.matmul(inside, subspace, precision=EXACT)
        inside = jnp.matmul(inside, subspace.T, precision=EXACT)
    else:
        matrix = update.reshape(d, -1).astype(wide)
        inside = matrix
        if given == "basis":
            inside = jnp.matmul(subspace.T, inside, precision=EXACT)
        inside = jnp.matmul(subspace, inside, precision=EXACT)
    return (matrix - inside).reshape(update.shape).astype(update.dtype)


def onto(update: jax.Array, projector: jax.Array, axis: int = -1) -> jax.Array:
    """P G, with G the array as a matrix [d, n] of d inputs and n outputs.

    Args:
      update: [..., n] with d = the product of the leading axes; with axis=0 [n, ...].
      projector: P [d, d].
      axis: the axis of ``update`` over the outputs, -1 or 0.

    Returns:
      An array like ``update``, in its dtype; the product is float32 at least.

    Raises:
      ValueError: P lies in a space of another dimension; a wrong axis.
    """
    d = _inputs(update, axis)
    if projector.shape != (d, d):
        raise ValueError(
            f"a projector of shape {list(projector.shape)} does not fit an array of "
            f"shape {list(update.shape)}, a matrix of {d} rows"
            f"{_hint(update, projector.shape, axis)}"
        )
    wide = jnp.promote_types(update.dtype, jnp.float32)
    if axis == 0:
        matrix = update.reshape(-1, d).astype(wide)
        moved = jnp.matmul(matrix, projector.T, precision=EXACT)
    else:
        matrix = update.reshape(d, -1).astype(wide)
        moved = jnp.matmul(projector, matrix, precision=EXACT)
    return moved.reshape(update.shape).astype(update.dtype)


def _inputs(update: jax.Array, axis: int) -> int:
    """d, the number of inputs of a kernel; 0 for a vector, which has none."""
    if axis not in AXES:
        raise ValueError(f"axis must be one of {AXES}, got {axis}")
    return update.size // update.shape[axis] if update.ndim > 1 else 0


def _hint(update: jax.Array, shape: tuple[int, ...], axis: int) -> str:
    other = AXES[1 - AXES.index(axis)]
    fits = update.ndim > 1 and shape[:1] == (_inputs(update, other),)
    return f"; with axis={other} it does" if fits else ""


def conflict(update: PyTree, reference: PyTree) -> jax.Array:
    """⟨g, r⟩/⟨r, r⟩ if ⟨g, r⟩ < 0, else 0: how much of r in g points against r.

    Args:
      update: g, a tree of arrays taken as one vector.
      reference: r, a tree of the same structure and shapes. r = 0 never conflicts.

    Returns:
      A scalar ≤ 0, float32 at least.
    """
    along = tree_dot(update, reference)

    def part() -> jax.Array:
        length = tree_dot(reference, reference)
        return jnp.where(length > 0, along / jnp.where(length > 0, length, 1), 0)

    # Most steps do not conflict, so they need no pass over the reference.
    return jax.lax.cond(along < 0, part, lambda: jnp.zeros_like(along))


def without_conflict(
    update: list[jax.Array], reference: list[jax.Array]
) -> list[jax.Array]:
    """g − (⟨g, r⟩/⟨r, r⟩) r if ⟨g, r⟩ < 0, else g itself, even if r is not finite.

    Args:
      update: g, arrays taken as one vector.
      reference: r, arrays of the same shapes.

    Returns:
      Arrays like ``update``, in its dtypes.
    """
    share = conflict(update, reference)
    return [
        jnp.where(share < 0, g - share * r, g).astype(g.dtype)
        for g, r in zip(update, reference, strict=True)
    ]
