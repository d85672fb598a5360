"""Random orders of data whose size is known only when the program runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.types import TaskData


def shuffled(
    key: jax.Array, size: jax.Array, capacity: int, first: int | None = None
) -> jax.Array:
    """A random order of 0 … size − 1, in an array of static length.

    Sorts uniform draws, with those beyond ``size`` last. `jax.random.permutation` needs
    the size at compile time, so tasks of unequal size would each need a compilation.

    Args:
      key: a typed key.
      size: int32[], 1 ≤ size ≤ capacity.
      capacity: the largest size.
      first: how many entries are wanted, at most ``capacity``; all if not given. A few
        of many are found without sorting the rest.

    Returns:
      int32[first]; the first ``size`` entries are the order. Each later entry i repeats
      entry i mod size, so that every entry is a valid position.
    """
    draws = jax.random.uniform(key, (capacity,))
    draws = jnp.where(jnp.arange(capacity) < size, draws, 2.0)
    if first is None:
        first, order = capacity, jnp.argsort(draws)
    else:
        order = jax.lax.top_k(-draws, first)[1]  # among equals the earlier, as argsort
    return order[jnp.arange(first) % size].astype(jnp.int32)


def batch_positions(
    order: jax.Array, i: jax.Array, batch_size: int, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Batch i of an order: its positions and weights (0 past the end).

    The last batch is padded with examples from the start of the order, not with zeros,
    so that statistics over a batch (BatchNorm) still see data.

    Args:
      order: int32[capacity], as `shuffled` makes it.
      i: int32[] index of the batch.
      batch_size: B.
      size: int32[] number of examples.

    Returns:
      int32[B] positions and float32[B] weights.
    """
    position = i * batch_size + jnp.arange(batch_size)
    weight = (position < size).astype(jnp.float32)
    return order[position % size], weight


def choose(
    data: TaskData,
    key: jax.Array,
    *,
    per_task: int | None,
    per_class: int | None,
    most: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Picks examples of a task at random: so many in all, or so many of each class.

    Args:
      data: the task's examples.
      key: a typed key.
      per_task: at most so many, whatever their classes; or None.
      per_class: at most so many of each class; or None. Give only one of the two; with
        neither, all examples are picked.
      most: if more are picked by class, the first ``most`` of them have evenly many of
        each class; by default they lie class by class.

    Returns:
      int32[N], all positions with the picked ones first, and bool[N], True for the
      picked ones; N = ``data.capacity``.
    """
    order = shuffled(key, data.size, data.capacity)
    place = jnp.arange(data.capacity)
    real = place < data.size
    if per_class is None:
        limit = data.capacity if per_task is None else per_task
        return order, real & (place < limit)
    label = jnp.where(real, data.take(order).y, jnp.iinfo(jnp.int32).max)
    by_label = jnp.argsort(label, stable=True)
    ordered = label[by_label]
    rank = place - jnp.searchsorted(ordered, ordered, side="left")
    keep = real[by_label] & (rank < per_class)
    first = jnp.argsort(~keep, stable=True)
    if most is not None:
        evenly = jnp.argsort(jnp.where(keep, rank, data.capacity), stable=True)
        first = jnp.where(keep.sum() > most, evenly, first)
    return order[by_label][first], keep[first]
