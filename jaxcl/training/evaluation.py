"""Accuracy and loss of a seed on a task's data."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.checks import require
from jaxcl.contract import Strategy
from jaxcl.data.stream import Stream
from jaxcl.heads import mask_logits
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.predicting import make_forward
from jaxcl.training.state import SeedState
from jaxcl.types import Batch, PyTree, Setup, TaskData

Evaluate = Callable[[SeedState, TaskData, jax.Array], tuple[jax.Array, jax.Array]]
"""``(seed, data, current task) -> (accuracy, loss)``"""


def told(setup: Setup) -> Setup:
    """A class-incremental `Setup` as if each example's task were told.

    The outputs of the example's task alone are in play: row t of the mask without row
    t − 1.

    Raises:
      ValueError: another scenario.
    """
    if setup.mask_by != "task":
        raise ValueError(
            "told reads a class-incremental network as if the task were told; of this "
            "scenario the accuracy itself is that"
        )
    before = jnp.pad(setup.logit_mask[:-1], ((1, 0), (0, 0)))
    return setup._replace(logit_mask=setup.logit_mask & ~before, mask_by="example")


def require_apart(stream: Stream) -> None:
    """Refuses a class-incremental stream in which a class comes again, for `told`.

    Raises:
      ValueError: the mask alone does not say which classes a task has.
    """
    require(
        stream.mask_by != "task" or not stream.repeats,
        "told is for tasks that share no class: a class of this stream comes again",
    )


def over_examples(
    setup: Setup,
    batch_size: int,
    data: TaskData,
    add: Callable[[Batch], PyTree],
    start: PyTree,
) -> PyTree:
    """Adds up ``add(batch)`` over all of a task's examples, in batches.

    The examples come in a random order that is always the same: data sets are often
    stored by class, and a network that normalises by the batch would otherwise see
    batches of a single class, on which it was never trained.

    Args:
      setup: the run's `Setup`.
      batch_size: examples at once. If an example's logits depend on its batch, every
        batch has this size for any data set: the last or only batch is filled up with
        examples of weight 0.
      data: examples.
      add: what a batch adds, each example by its weight.
      start: what is added to; gives the dtypes.
    """
    full = batch_size if setup.mixes_examples else data.capacity
    size = min(batch_size, full)
    key = jax.random.key(0)  # always the same order
    order = shuffled(key, data.size, data.capacity)

    def body(i, totals):
        position, weight = batch_positions(order, i, size, data.size)
        new = add(data.take(position)._replace(weight=weight))
        return jax.tree.map(lambda t, v: t + v.astype(t.dtype), totals, new)

    bound = (data.size + size - 1) // size
    return jax.lax.fori_loop(0, bound, body, start)


def make_evaluate(setup: Setup, strategy: Strategy, batch_size: int) -> Evaluate:
    """Builds the function that evaluates one seed on one task.

    Args:
      setup: the run's `Setup`.
      strategy: any `Strategy`.
      batch_size: examples at once; see `over_examples`.

    Returns:
      ``(seed, data, current task) -> (accuracy, loss)``, float32[], NaN for a seed that
      has failed, or whose logits are NaN.
    """
    forward = make_forward(setup, strategy)

    def evaluate(
        seed: SeedState, data: TaskData, current: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Accuracy and mean loss over a task's data, in evaluation mode.

        Args:
          seed: the seed's state.
          data: examples.
          current: int32[] the last task trained.
        """
        of_seed = (seed.params, seed.model_state, seed.strategy_state)

        def add(batch: Batch) -> tuple[jax.Array, ...]:
            out = forward(*of_seed, batch, current)
            logits = mask_logits(setup, out.logits, batch.task, current)
            right = jnp.sum((logits.argmax(-1) == batch.y) * batch.weight)
            # A class not yet in play has a loss of 1e38: leave out its examples.
            known = jnp.take_along_axis(logits, batch.y[:, None], 1)[:, 0] > -1e30
            loss = setup.task_loss(
                out.logits, batch._replace(weight=batch.weight * known), current
            )
            n = batch.weight.sum()
            return right, loss * n, n

        zeros = (jnp.zeros((), jnp.float32),) * 3
        right, loss, n = over_examples(setup, batch_size, data, add, zeros)
        n = jnp.maximum(n, 1)
        accuracy, loss = right / n, loss / n
        # Weights that are not finite predict class 0, which gives no real accuracy; nor
        # do logits that are NaN. One of them makes the whole loss NaN.
        failed = seed.progress.failed | jnp.isnan(loss)
        return jnp.where(failed, jnp.nan, accuracy), jnp.where(failed, jnp.nan, loss)

    return evaluate
