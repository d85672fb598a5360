"""Matches trees of extra arguments to the leaves of a tree of updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcl.ops.trees import leaf_names
from jaxcl.types import PyTree

MISSING: Any = object()
"""An extra argument of ``update`` that was not given."""


def require_extra(transform: str, name: str, value: Any, extra: dict[str, Any]) -> None:
    """Refuses an ``update`` without the extra argument that a transform needs."""
    if value is MISSING:
        got = ", ".join(f"{key}=" for key in sorted(extra)) or "none"
        raise ValueError(
            f"{transform} needs the extra argument {name}: update(updates, state, "
            f"params, {name}=...); extra arguments given: {got}"
        )


def map_where_given(
    one: Callable[..., Any], name: str, given: PyTree, updates: PyTree, axis: Any
) -> PyTree:
    """Applies ``one(given, update, axis)`` to each leaf for which something is given.

    Leaves that `optax.masked` has removed stay removed.
    """
    leaves, tree = jax.tree.flatten(given, is_leaf=is_none)
    parts = flatten_up_to(tree, updates, name, "updates")
    same = isinstance(axis, int)
    axes = [axis] * len(leaves) if same else flatten_up_to(tree, axis, name, "axis")
    for space, part in zip(leaves, parts, strict=True):
        if space is not None and not is_masked(part) and not hasattr(part, "shape"):
            raise ValueError(
                f"{name} must be a tree like the updates (None for what passes); it "
                f"has one value where the updates have a {type(part).__name__}"
            )
    new = [
        part if space is None or is_masked(part) else one(jnp.asarray(space), part, ax)
        for space, part, ax in zip(leaves, parts, axes, strict=True)
    ]
    return jax.tree.unflatten(tree, new)


def flatten_up_to(tree: Any, other: PyTree, name: str, of: str) -> list[Any]:
    """The parts of a tree at the places of another tree's leaves."""
    try:
        return tree.flatten_up_to(other)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name} must be a tree like the updates (None for what passes); with the "
            f"{of} it does not match: {error}"
        ) from error


def is_none(node: Any) -> bool:
    return node is None


def is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def require_same_shapes(name: str, given: PyTree, of: str, like: PyTree) -> None:
    """Refuses a tree that another one does not fit leaf by leaf.

    Args:
      name: the tree's name, for the message.
      given: a tree of arrays.
      of: the other tree's name.
      like: a tree of arrays.

    Raises:
      ValueError: the structure or a shape differs; the message names the leaf.
    """
    leaves, want = (
        {"/".join(leaf_names(path)): leaf for path, leaf in each}
        for each in map(jax.tree_util.tree_leaves_with_path, (given, like))
    )
    if jax.tree.structure(given) != jax.tree.structure(like):
        odd = sorted(leaves.keys() ^ want.keys())[:3] or ["their containers"]
        raise ValueError(
            f"{name} must be a tree like {of}, they differ in {', '.join(odd)}"
        )
    for leaf, one in leaves.items():
        if jnp.shape(one) != jnp.shape(want[leaf]):
            raise ValueError(
                f"{name} must have the shapes of {of}, got {list(jnp.shape(one))} in "
                f"place of {list(jnp.shape(want[leaf]))}{leaf and f' at {leaf!r}'}"
            )


def require_broadcast(mask: jax.Array, update: jax.Array) -> None:
    """Refuses a mask that does not broadcast against an update.

    Raises:
      ValueError: it does not; the message gives both shapes.
    """
    sides = zip(mask.shape[::-1], update.shape[::-1], strict=False)
    if mask.ndim > update.ndim or any(m not in (1, n) for m, n in sides):
        raise ValueError(
            f"a mask of shape {list(mask.shape)} does not broadcast against an "
            f"update of shape {list(update.shape)}"
        )
