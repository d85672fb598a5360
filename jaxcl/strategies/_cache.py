"""Values that strategies compute once for each example, before a task."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.ops.agreement import agreed
from jaxcl.ops.linalg import EXACT
from jaxcl.types import Batch, LayerSpec, TaskData

CACHE_LIMIT = 2**30
"""The most bytes per seed for one quantity of a task's examples."""
CHUNK = 1000
"""Examples at once, where a task's inputs are projected."""


def has_room(data: TaskData, width: int) -> bool:
    """Whether a float32[width] for each example is of use, and within the limit."""
    return not data.changes and 4 * data.capacity * width <= CACHE_LIMIT


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


def projected_inputs(data: TaskData, projector: jax.Array) -> jax.Array:
    """x − M x for all examples of a task, [capacity, d]."""
    d = projector.shape[0]

    def without(batch):
        x = batch.x.reshape(-1, d)
        return x - jnp.matmul(x, projector, precision=EXACT)

    return of_all(data, without, CHUNK)


def can_be_cached(layer: LayerSpec) -> bool:
    """Whether a layer reads an example's data, unchanged, as one row."""
    return layer.kind == "dense" and layer.reads_input and layer.positions == 1
