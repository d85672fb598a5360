"""A condition that all seeds share, so that a branch stays one under `jax.vmap`."""

from __future__ import annotations

import jax
from jax.custom_batching import custom_vmap


@custom_vmap
def agreed(condition: jax.Array) -> jax.Array:
    """bool[], true where it is true in every lane of every `jax.vmap` around it.

    A `jax.lax.cond` on a condition that differs between lanes computes both branches.
    Where either is right for a lane whose condition holds, all may take the other one
    as long as a single lane has to.
    """
    return condition


@agreed.def_vmap
def _in_all_lanes(size, batched, condition):
    return agreed(condition.all()), False
