"""A store of past examples: fixed capacity, on the device, one per seed.

Filled slots are a prefix of the arrays, so drawing from a memory means drawing a number
below its size. There are two ways to fill it: `append` keeps the first examples (with
`sampling.choose`, so many of each task or class), and `reservoir_add` always holds a
uniform sample of all examples offered. All functions are pure and work under `jax.jit`,
`jax.vmap`, `jax.lax.map` and loops; no call writes a slot twice.

Inputs are stored flat, as `Codec.encode` gives them: rows of a matrix are gathered
ten times faster on a CPU than rows of a higher-rank array.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.types import Batch, Codec, PyTree, Setup

AUGMENT = 1
"""Folded into the key of a draw, for the random changes of what was drawn."""


class Memory(NamedTuple):
    """Past examples; slots from ``size`` on are empty."""

    x: jax.Array  # [cap, D] encoded inputs, flat
    y: jax.Array  # int32[cap]
    task: jax.Array  # int32[cap]
    extra: PyTree  # [cap, ...] what a method stores with an example (logits), or ()
    size: jax.Array  # int32[] slots filled
    seen: jax.Array  # int32[] examples offered so far


class Sample(NamedTuple):
    """Examples drawn from a memory."""

    batch: Batch  # weight 0 throughout if the memory is empty
    extra: PyTree  # [n, ...]


def empty(setup: Setup, capacity: int, extra: PyTree = ()) -> Memory:
    """A memory without examples.

    Args:
      setup: gives an input's shape and the codec.
      capacity: number of slots, at least 1.
      extra: a tree of `jax.ShapeDtypeStruct`, of one example each.

    Returns:
      A `Memory`.

    Raises:
      ValueError: the capacity is below 1.
    """
    if capacity < 1:
        raise ValueError(f"a memory's capacity must be at least 1, got {capacity}")
    shape = setup.example.shape[1:]
    stored = jax.eval_shape(setup.codec.encode, setup.example)

    def zeros(shape, dtype):
        return jnp.zeros((capacity, *shape), dtype)

    # Separate arrays: a buffer must not be donated twice.
    return Memory(
        x=zeros((math.prod(shape),), stored.dtype),
        y=zeros((), jnp.int32),
        task=zeros((), jnp.int32),
        extra=jax.tree.map(lambda leaf: zeros(leaf.shape, leaf.dtype), extra),
        size=jnp.zeros((), jnp.int32),
        seen=jnp.zeros((), jnp.int32),
    )


def append(memory: Memory, batch: Batch, codec: Codec, extra: PyTree = ()) -> Memory:
    """Adds a batch's examples after the stored ones; leaves out those that do not fit.

    Args:
      memory: the memory to extend.
      batch: [B] examples; those of weight 0 are left out.
      codec: of the run.
      extra: [B, ...] of the memory's own structure.

    Returns:
      The `Memory`, its size increased by the number of examples added.
    """
    capacity = memory.y.shape[0]
    real = batch.weight > 0
    slot = memory.size + jnp.cumsum(real) - 1
    slot = jnp.where(real & (slot < capacity), slot, capacity)
    count = real.sum(dtype=jnp.int32)
    return _write(memory, slot, batch, codec, extra)._replace(
        size=jnp.minimum(memory.size + count, capacity), seen=memory.seen + count
    )


def reservoir_add(
    memory: Memory, key: jax.Array, batch: Batch, codec: Codec, extra: PyTree = ()
) -> Memory:
    """Offers a batch's examples to a memory, a uniform sample of all examples offered.

    Example number n (from 0) takes slot n while slots are free. Later it takes a slot r
    drawn from 0 … n if r < capacity, and none otherwise. So each of N examples offered
    is in the memory with probability min(1, capacity/N). If two examples of a batch
    draw the same slot, the hardware would decide which one stays; here the later one
    does, as if they had come one after the other.

    Args:
      memory: the memory; only this function may fill it.
      key: a typed key.
      batch: [B] examples; those of weight 0 are not offered.
      codec: of the run.
      extra: [B, ...] of the memory's own structure.

    Returns:
      The `Memory`.

    Source: Vitter, Random sampling with a reservoir, ACM TOMS 1985,
    https://doi.org/10.1145/3147.3165, algorithm R.
    """
    capacity, size = memory.y.shape[0], batch.y.shape[0]
    real = batch.weight > 0
    number = memory.seen + jnp.cumsum(real, dtype=jnp.int32) - 1
    drawn = jax.random.randint(key, (size,), 0, jnp.maximum(number, 0) + 1)
    slot = jnp.where(number < capacity, number, drawn)
    slot = jnp.where(real & (slot < capacity), slot, capacity)
    order = jnp.arange(size)
    later = (slot[None, :] == slot[:, None]) & (order[None, :] > order[:, None])
    slot = jnp.where(later.any(axis=1), capacity, slot)
    seen = memory.seen + real.sum(dtype=jnp.int32)
    return _write(memory, slot, batch, codec, extra)._replace(
        size=jnp.minimum(seen, capacity), seen=seen
    )


def _write(memory: Memory, slot, batch: Batch, codec: Codec, extra: PyTree) -> Memory:
    """Writes rows to distinct slots; drops the rows for slot ``capacity``."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[slot].set(new.astype(old.dtype), mode="drop")

    x = codec.encode(batch.x)
    if jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.issubdtype(
        memory.x.dtype, jnp.inexact
    ):
        raise ValueError(
            f"a memory of {memory.x.dtype}, as the setup's example is, cannot hold "
            f"inputs of {x.dtype}: make the setup with an example of theirs"
        )
    return memory._replace(
        x=put(memory.x, x.reshape(x.shape[0], -1)),
        y=put(memory.y, batch.y),
        task=put(memory.task, batch.task),
        extra=jax.tree.map(put, memory.extra, extra),
    )


def sample(memory: Memory, key: jax.Array, n: int, setup: Setup) -> Sample:
    """Draws examples uniformly and independently, so one may be drawn twice.

    Args:
      memory: the memory to draw from.
      key: a typed key.
      n: how many examples.
      setup: gives an input's shape, the codec, and how training augments inputs: what
        is drawn is augmented anew.

    Returns:
      A `Sample` of n. Drawing without repeats, as the official codes do, takes time
      that grows with the capacity or with n²; this does not.
    """
    slot = jax.random.randint(key, (n,), 0, jnp.maximum(memory.size, 1))

    def rows(leaf: jax.Array) -> jax.Array:
        return leaf.at[slot].get(mode="promise_in_bounds")

    x = setup.codec.decode(rows(memory.x).reshape(n, *setup.example.shape[1:]))
    if setup.augmentation is not None:
        x = setup.augmentation(x, jax.random.fold_in(key, AUGMENT))
    return Sample(
        Batch(
            x=x,
            y=rows(memory.y),
            task=rows(memory.task),
            weight=jnp.broadcast_to((memory.size > 0).astype(jnp.float32), (n,)),
            index=jnp.full((n,), -1),  # not of the task in training
        ),
        jax.tree.map(rows, memory.extra),
    )


def with_replay(batch: Batch, *drawn: Batch) -> Batch:
    """A batch with drawn examples, and their weights, appended to its own.

    If the memory was empty, the drawn rows repeat the batch's own at weight 0, so that
    statistics over a batch (BatchNorm) never see invented data.

    Args:
      batch: [B] the step's examples.
      *drawn: batches from `sample`, [n] each.

    Returns:
      A `Batch` of B + Σ n.
    """

    rows = [batch, *(filled(past, batch) for past in drawn)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)


def filled(drawn: Batch, batch: Batch) -> Batch:
    """What was drawn; from an empty memory, a step's own inputs, at weight 0.

    A network need not be defined at the zeros that an empty memory holds, and 0 · NaN
    is NaN.
    """
    again = jnp.arange(drawn.y.shape[0]) % batch.y.shape[0]
    there = (drawn.weight > 0).reshape(-1, *(1,) * (drawn.x.ndim - 1))
    return drawn._replace(x=jnp.where(there, drawn.x, batch.x[again]))
