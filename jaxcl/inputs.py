"""Makes the arguments of a strategy's hooks: a `Context` and a `TaskData`.

Your own training loop makes them here; this project's loop does too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.checks import require_range
from jaxcl.types import Batch, Context, PyTree, Setup, TaskData


def context(
    x: jax.Array,
    y: jax.Array,
    *,
    task: int | jax.Array,
    step: int | jax.Array = 0,
    seed: int | jax.Array = 0,
    key: jax.Array | None = None,
    index: jax.Array | None = None,
    setup: Setup | None = None,
    **moment: Any,
) -> Context:
    """A `Context` for your own training loop.

    Args:
      x: [B, ...] inputs.
      y: int[B] targets.
      task: the task that the examples belong to, which is the one in training.
      step: the step's number since the task's start. Without it, and without a key, all
        steps of a task have one key: the same dropout, the same draws from a memory.
      seed: of the run; the step's default key is drawn from it.
      key: a typed key of this step's own; by default one that differs between seeds,
        tasks and steps.
      index: int[B], where each example lies in the `TaskData` that ``before_task`` was
        given; by default unknown, and the step then uses nothing of what
        ``before_task`` made.
      setup: if given, tasks and targets are checked against its T and K.
      **moment: as for `context_of`: epoch, epoch_progress, epoch_fraction,
        task_progress, model_state, cache.

    Returns:
      A `Context` in which every example has weight 1.

    Raises:
      ValueError: x and y differ in length; y is no vector of whole numbers; a task, a
        target or an index is out of range. The range of tracers is not checked: inside
        jit such a value is clipped without a warning.
    """
    if not hasattr(x, "shape"):
        raise ValueError(f"inputs x are one array, got a {type(x).__name__}")
    n = x.shape[0]
    _require_classes(y)
    _require_labels(x, y, task, setup)
    if index is not None:
        require_range("index", index, np.iinfo(np.int32).max)
    batch = Batch(
        x=x,
        y=jnp.asarray(y, jnp.int32),
        task=jnp.full((n,), task, jnp.int32),
        weight=jnp.ones((n,), jnp.float32),
        index=jnp.full((n,), -1) if index is None else jnp.asarray(index, jnp.int32),
    )
    if key is None:
        key = jax.random.key(seed)
        for number in (task, step):
            key = jax.random.fold_in(key, number)
    return context_of(batch, task=task, step=step, key=key, **moment)


def context_of(
    batch: Batch,
    *,
    task: int | jax.Array,
    key: jax.Array,
    step: int | jax.Array = 0,
    epoch: int | jax.Array | None = None,
    epoch_progress: float | jax.Array | None = None,
    epoch_fraction: float | jax.Array | None = None,
    task_progress: float | jax.Array | None = None,
    model_state: PyTree | None = None,
    cache: PyTree = (),
) -> Context:
    """The `Context` of a step on a batch.

    Args:
      batch: the step's examples.
      task: the task in training.
      key: a typed key of this step's own.
      step: the step's number since the task's start.
      epoch: the epoch of the task, from 0; ER and DER++ read it (``offer=
        "first_epoch"``), and `frozen` (``epochs``). It and the next three may be left
        out where no method reads them; one that does refuses the context.
      epoch_progress: (b − 1)/(B − 1) for batch b of the epoch's B; HAT reads it, and
        OWM (``progress="epoch"``).
      epoch_fraction: share of the epoch's examples that came before this batch; HAT
        reads it (``epoch_progress="examples"``).
      task_progress: share of the task's steps that are done; OL and OWM read it.
      model_state: the model's running statistics, by default none.
      cache: what the strategy's ``before_task`` returned.
    """
    return Context(
        task=jnp.asarray(task, jnp.int32),
        step=jnp.asarray(step, jnp.int32),
        epoch=None if epoch is None else jnp.asarray(epoch, jnp.int32),
        epoch_progress=_float(epoch_progress),
        epoch_fraction=_float(epoch_fraction),
        task_progress=_float(task_progress),
        key=key,
        batch=batch,
        model_state={} if model_state is None else model_state,
        cache=cache,
    )


def _float(value: float | jax.Array | None) -> jax.Array | None:
    return None if value is None else jnp.asarray(value, jnp.float32)


def array_data(
    x: jax.Array,
    y: jax.Array,
    task: int | jax.Array = 0,
    *,
    setup: Setup | None = None,
) -> TaskData:
    """Plain arrays as the `TaskData` that `before_task` and `after_task` read.

    Args:
      x: [N, ...] network inputs.
      y: int[N] targets.
      task: the task they belong to.
      setup: if given, tasks and targets are checked against its T and K.

    Returns:
      A `TaskData` of N examples.

    Raises:
      ValueError: x and y differ in length, or are empty; y is no vector of whole
        numbers; a task or a target is out of range, unless they are tracers.
    """
    x = jnp.asarray(x)
    _require_classes(y)
    y = jnp.asarray(y, jnp.int32)
    if x.shape[0] != y.shape[0] or x.shape[0] == 0:
        raise ValueError(
            f"x and y need the same, non-zero number of rows, got {x.shape[0]} and "
            f"{y.shape[0]}"
        )
    _require_labels(x, y, task, setup)

    def take(index: jax.Array) -> Batch:
        return Batch(
            x=x[index],
            y=y[index],
            task=jnp.full(index.shape, task, jnp.int32),
            weight=jnp.ones(index.shape, jnp.float32),
            index=index,
        )

    return TaskData(take, jnp.asarray(x.shape[0], jnp.int32), x.shape[0])


def _require_classes(y) -> None:
    """Refuses targets that are no vector of whole numbers: one-hot, or fractions."""
    shape, dtype = jnp.shape(y), jnp.result_type(y)
    if len(shape) != 1 or jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"targets y are numbers of classes, int[B], got {dtype}{list(shape)}"
        )


def _require_labels(x, y, task, setup: Setup | None) -> None:
    """Refuses targets and tasks that JAX would clip as indices."""
    if jnp.shape(y)[:1] != x.shape[:1]:
        raise ValueError(
            f"x and y need the same number of rows, got {x.shape[0]} and "
            f"{list(jnp.shape(y))}"
        )
    most = np.iinfo(np.int32).max
    require_range("task", task, setup.num_tasks if setup else most)
    require_range("targets y", y, setup.logit_mask.shape[1] if setup else most)
