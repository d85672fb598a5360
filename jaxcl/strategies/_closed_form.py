"""Shared by heads in closed form: the features, one pass over them, and the logits.

The classifier of the network is trained as usual, and gives the logits while a task is
in training: patience and selection use it. From the task's end on, the head in closed
form gives the logits instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.heads import head_layers
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.types import ApplyFn, Context, LayerSpec, PyTree, Setup, TaskData


def reads_vectors(layer: LayerSpec) -> bool:
    """Whether a layer is dense and reads one vector per example."""
    return layer.kind == "dense" and layer.positions == 1 and not layer.refusal


def head_layer(setup: Setup, method: str) -> LayerSpec:
    """The layer whose input is the features: the classifier, one dense layer.

    Raises:
      ValueError: there is no such layer; the message names those found.
    """
    found = head_layers(setup)
    if len(found) != 1:
        raise ValueError(
            f"{method} reads the input of the classifier, one layer of setup.layers "
            f"that setup.heads names; heads {setup.heads} name "
            f"{[layer.name for layer in found]} of "
            f"{[layer.name for layer in setup.layers]}"
        )
    (layer,) = found
    if not reads_vectors(layer):
        why = layer.refusal or f"it is {layer.kind}, read at {layer.positions} places"
        raise ValueError(
            f"{method} needs a classifier that is dense and reads one vector per "
            f"example; layer {layer.name!r}: {why}"
        )
    return layer


def features_of(layer: LayerSpec, taps: dict[str, jax.Array]) -> jax.Array:
    """float32[B, D], the input of a layer."""
    return taps[layer.name].astype(jnp.float32)


class Examples(NamedTuple):
    """A task's examples, and the network that gives their features at the task's end.

    Attributes:
      setup: gives the network; the earlier members of a chain are put around it.
      layer: from `head_layer`.
      net: parameters.
      model_state: running statistics.
      data: the examples. Examples of other tasks, which joint training includes, are
        ignored: the head has absorbed them at the end of their own task.
      task: int32[] the task that has ended.
      key: for the order, which matters if a network normalises by the batch.
      chunk: examples at once.
    """

    setup: Setup
    layer: LayerSpec
    net: PyTree
    model_state: PyTree
    data: TaskData
    task: jax.Array
    key: jax.Array
    chunk: int


def over_features(
    examples: Examples,
    take: Callable[[Any, jax.Array, jax.Array, jax.Array], Any],
    start: Any,
) -> Any:
    """One pass over the features of a task's examples, each once.

    Args:
      examples: the task's.
      take: ``(carry, x float32[B, D], y int32[B], weight float32[B]) -> carry``.
      start: the carry before the first chunk.

    Returns:
      The carry after the last chunk. The network is in evaluation mode.
    """
    setup, layer, net, model_state, data, task, key, chunk = examples
    apply_fn = data.forward(setup.apply_fn)
    order = shuffled(key, data.size, data.capacity)
    size = chunk if setup.mixes_examples else min(chunk, data.capacity)

    def body(i, carry):
        position, weight = batch_positions(order, i, size, data.size)
        batch = data.take(position)
        out = apply_fn(net, model_state, batch.x, batch.task, key, False)
        own = weight * (batch.task == task)
        return take(carry, features_of(layer, out.taps), batch.y, own)

    return jax.lax.fori_loop(0, (data.size + size - 1) // size, body, start)


def answer(
    apply_fn: ApplyFn,
    layer: LayerSpec,
    done: jax.Array,
    ctx: Context,
    logits: Callable[[jax.Array], jax.Array],
) -> ApplyFn:
    """Lets a head in closed form give the logits in evaluation.

    Args:
      apply_fn: the network.
      layer: from `head_layer`.
      done: int32[] how many tasks the head has absorbed. For the task in training,
        which is not among them, the network's own classifier gives the logits.
      ctx: gives the task.
      logits: ``(x float32[B, D]) -> float32[B, K]``.
    """

    def apply(net, model_state, x, task, key, train):
        out = apply_fn(net, model_state, x, task, key, train)
        if train:
            return out

        def ours():
            kind = out.logits.dtype
            # The lowest float32 is −∞ in bfloat16.
            found = logits(features_of(layer, out.taps))
            return jnp.maximum(found, jnp.finfo(kind).min).astype(kind)

        return out._replace(
            logits=jax.lax.cond(ctx.task < done, ours, lambda: out.logits)
        )

    return apply


def tasks_done(before: jax.Array, task: jax.Array) -> jax.Array:
    """int32[] how many tasks have been absorbed, including this one."""
    return jnp.maximum(before, task + 1).astype(jnp.int32)
