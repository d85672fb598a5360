"""Random orders of data whose size is known only when the program runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
