"""A condition that all seeds share, so that a branch stays one under `jax.vmap`."""

from __future__ import annotations

import jax
from jax.custom_batching import custom_vmap


@custom_vmap
def agreed(condition: jax.Array) -> jax.Array:
    """bool[], true only if it is true in every lane of every `jax.vmap` around it.

    A `jax.lax.cond` on a condition that differs between lanes computes both branches.
    If both branches are right for lanes with a true condition, all lanes may take the
    other branch as soon as a single lane needs it.
    """
    return condition


@agreed.def_vmap
def _in_all_lanes(size, batched, condition):
    return agreed(condition.all()), False
