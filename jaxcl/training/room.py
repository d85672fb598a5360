"""Refuses a run that cannot fit into this machine's memory, before it allocates."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.checks import bytes_of, require_room
from jaxcl.data.stream import Stream
from jaxcl.training.plan import Plan
from jaxcl.training.trainer import Trainer
from jaxcl.types import PyTree, Setup


def require_batches_fit(model: Any, stream: Stream, plan: Plan, measure: str) -> None:
    """Refuses batches that are larger than the memory.

    Args:
      model: a network; `mixes_examples` says whether it normalises by the batch.
      stream: where the images come from.
      plan: has the sizes of the batches.
      measure: "test" or "valid", what is evaluated.

    Raises:
      ValueError: the message gives their size and that of the memory.
    """
    pixels = math.prod(stream.input_shape)
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(plan, name)
        mixes = getattr(model, "mixes_examples", False)
        if name == "eval_batch_size" and not mixes:
            size = min(size, stream.capacity(measure))
        require_room(f"batches of {name}={size} images", 4 * size * pixels)


def require_weights_fit(model: Any, net: PyTree, seeds: int) -> None:
    """Refuses weights that are larger than the memory.

    Args:
      model: the network, for the message.
      net: its weights, or their shapes, of one seed.
      seeds: how many seeds there are.

    Raises:
      ValueError: as `require_batches_fit`.
    """
    what = f"the weights of {seeds} seeds of {' '.join(repr(model).split())}"
    require_room(what, (seeds + 1) * bytes_of(net))  # and one gradient


def require_activations_fit(
    setup: Setup, net: PyTree, model_state: PyTree, seeds: int
) -> None:
    """Refuses layers' inputs, which a step keeps for its gradient, larger than memory.

    A step needs more than that. Layers that no method could treat are not known and not
    counted.

    Args:
      setup: of the network, with a batch of inputs.
      net: the weights, or their shapes, of one seed.
      model_state: the running statistics, or their shapes.
      seeds: how many seeds compute at once.

    Raises:
      ValueError: as `require_batches_fit`.
    """
    batch = setup.example
    task, key = jax.ShapeDtypeStruct(batch.shape[:1], jnp.int32), jax.random.key(0)

    def taps(net, model_state, x, task):
        return setup.apply_fn(net, model_state, x, task, key, True).taps

    kept = seeds * bytes_of(jax.eval_shape(taps, net, model_state, batch, task))
    require_room(f"the layers' inputs in a step of {batch.shape[0]} images", kept)


def require_states_fit(trainer: Trainer, seeds: int) -> None:
    """Does the same for all that training carries: a strategy's and optimizer's states.

    Args:
      trainer: of one seed.
      seeds: how many seeds there are.

    Raises:
      ValueError: as `require_batches_fit`; it names the largest array.
    """
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    path, largest = max(
        jax.tree_util.tree_leaves_with_path(state), key=lambda pair: bytes_of(pair[1])
    )
    require_room(
        f"the states of {seeds} seeds, with "
        f"{jax.tree_util.keystr(path)} {largest.dtype}{list(largest.shape)},",
        seeds * bytes_of(state),
    )
