"""Values that strategies compute once for each example, before a task."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.ops.agreement import agreed
from jaxcl.types import Batch, TaskData

CACHE_LIMIT = 2**30
"""The most bytes per seed for one quantity of a task's examples."""


def has_room(data: TaskData, width: int) -> bool:
    """Whether a float32[width] for each example is within the limit."""
    return 4 * data.capacity * width <= CACHE_LIMIT


def of_all(
    data: TaskData, fn: Callable[[Batch], jax.Array], batch_size: int
) -> jax.Array:
    """Applies ``fn``, from a batch of n examples to [n, ...], to all: [capacity, ...].

    It takes `batch_size` examples at a time; rows beyond ``data.size`` repeat the last
    example.
    """

    def chunk(position):
        return fn(data.take(jnp.minimum(position, data.size - 1)))

    size = min(batch_size, data.capacity)
    position = jnp.arange(-(-data.capacity // size) * size).reshape(-1, size)
    made = jax.lax.map(chunk, position)
    return made.reshape(-1, *made.shape[2:])[: data.capacity]


def is_of_task(index: jax.Array) -> jax.Array:
    """bool[], whether a batch holds only examples of the task's data.

    Replayed and augmented examples are not such examples.
    """
    return agreed((index >= 0).all())
