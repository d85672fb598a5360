"""What strategies compute once, before a task, of each of its examples."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.ops.agreement import agreed
from jaxcl.types import Batch, TaskData

CACHE_LIMIT = 2**30
"""Bytes a seed may hold of one quantity of a task's examples."""
_CHUNK = 1000


def has_room(data: TaskData, width: int) -> bool:
    """Whether a float32[width] of each example may be held."""
    return 4 * data.capacity * width <= CACHE_LIMIT


def of_all(data: TaskData, fn: Callable[[Batch], jax.Array]) -> jax.Array:
    """[capacity, ...] of ``fn``, which maps a batch of n examples to [n, ...].

    A thousand examples at a time; what lies beyond ``data.size`` repeats the last one.
    """

    def chunk(position):
        return fn(data.take(jnp.minimum(position, data.size - 1)))

    size = min(_CHUNK, data.capacity)
    position = jnp.arange(-(-data.capacity // size) * size).reshape(-1, size)
    made = jax.lax.map(chunk, position)
    return made.reshape(-1, *made.shape[2:])[: data.capacity]


def is_of_task(index: jax.Array) -> jax.Array:
    """bool[], whether a batch holds examples of the task's data alone.

    One that replay has mixed into holds others, and so does one that is augmented.
    """
    return agreed((index >= 0).all())
