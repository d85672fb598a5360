"""Makes the arguments of a strategy's hooks: a `Context` and a `TaskData`.

Your own training loop makes them here; this project's loop does too.
"""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcl import schema
from jaxcl.checks import require, require_range
from jaxcl.schema import Natural, Range, Share
from jaxcl.types import Batch, Context, PyTree, Setup, TaskData

_Epoch = Annotated[int, Range(-1)]
_SHARES = ("epoch_progress", "epoch_fraction", "task_progress")


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
      y: int[B] targets, each among all K outputs: where tasks have outputs of their own
        the second task's are not 0 and 1 again, but follow the first task's.
      task: the task that the examples belong to, which is the one in training.
      step: the step's number since the task's start. Without it, and without a key, all
        steps of a task have one key: the same dropout, the same draws from a memory.
      seed: of the run.
      key: a typed key of this step's own; by default it is drawn from seed, task, step.
      index: int[B], where each example lies in the `TaskData` that ``before_task`` was
        given; by default unknown, and the step then uses nothing of what
        ``before_task`` made.
      setup: if given, the task is checked against its T, and the targets against the
        outputs in play in this task.
      **moment: as for `context_of`: epoch, epoch_progress, epoch_fraction,
        task_progress, model_state, cache, original.

    Returns:
      A `Context` in which every example has weight 1.

    Raises:
      ValueError: x and y differ in length, or are empty; y is no vector of whole
        numbers, nor is an index, or it has another length; a task, a step, a target, an
        index or a share of the training is out of range. The range of tracers is not
        checked: inside jit such a value is clipped without a warning.
    """
    if not hasattr(x, "shape"):
        raise ValueError(f"inputs x are one array, got a {type(x).__name__}")
    schema.require("seed", seed, int)
    schema.require("step", step, Natural)
    y = class_numbers(y)
    _require_labels(x, y, task, setup)
    n = x.shape[0]
    if index is not None:
        shape, dtype = jnp.shape(index), jnp.result_type(index)
        require(
            shape == (n,) and jnp.issubdtype(dtype, jnp.integer),
            f"index must be int[{n}], one number per example, got {dtype}{list(shape)}",
        )
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
    original: jax.Array | None = None,
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
      original: like batch.x, the inputs before augmentation. A memory holds these, and
        augments what it draws by ``setup._replace(augmentation=...)``.

    Raises:
      ValueError: a number is out of range; ``original`` is of another shape.
    """
    for name, value in (("task", task), ("step", step)):
        schema.require(name, value, Natural)
    schema.require("epoch", epoch, _Epoch | None)
    shares = (epoch_progress, epoch_fraction, task_progress)
    for name, value in zip(_SHARES, shares, strict=True):
        schema.require(name, value, Share | None)
    if original is not None:
        came, shape = list(jnp.shape(original)), list(jnp.shape(batch.x))
        require(came == shape, f"original must be like x, {shape}, got {came}")
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
        original=original,
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
      setup: if given, the task is checked against its T, and the targets against the
        outputs in play in this task.

    Returns:
      A `TaskData` of N examples.

    Raises:
      ValueError: x and y differ in length, or are empty; y is no vector of whole
        numbers; a task or a target is out of range, unless they are tracers.
    """
    x, y = jnp.asarray(x), jnp.asarray(class_numbers(y), jnp.int32)
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


def class_numbers(y: Any) -> Any:
    """Targets as an array; refuses one-hot rows and fractions.

    Raises:
      ValueError: they are no vector of whole numbers.
    """
    y = y if hasattr(y, "dtype") else np.asarray(y)
    whole = y.dtype == bool or jnp.issubdtype(y.dtype, jnp.integer)
    require(
        y.ndim == 1 and whole,
        f"targets y are numbers of classes, int[B], got {y.dtype}{list(y.shape)}",
    )
    return y


def _require_labels(x, y, task, setup: Setup | None) -> None:
    """Refuses targets and tasks that JAX would clip as indices."""
    rows = x.shape[0] if x.shape else "none"
    require(
        rows == y.shape[0] != 0,
        f"x and y need the same, non-zero number of rows, got {rows} and {y.shape[0]}",
    )
    schema.require("task", task, int)
    most = np.iinfo(np.int32).max
    require_range("task", task, setup.num_tasks if setup else most)
    require_range("targets y", y, setup.logit_mask.shape[1] if setup else most)
    if setup is not None:
        require_in_play(setup.logit_mask, y, task)


def require_in_play(
    mask: jax.Array, y: jax.Array, task: int | jax.Array, counts: Any = True
) -> None:
    """Refuses targets that are not outputs of their task; tracers pass.

    Args:
      mask: bool[T, K], of a `Setup`.
      y: int[B] targets in [0, K).
      task: int[] or int[B] in [0, T), the row of the mask that applies.
      counts: bool[B], False for rows that only pad the batch.

    Raises:
      ValueError: a target is not in play.
    """
    if any(isinstance(value, Tracer) for value in (mask, y, task, counts)):
        return
    rows, given = np.asarray(mask)[np.asarray(task)], np.asarray(y)
    rows = np.broadcast_to(rows, (len(given), rows.shape[-1]))
    in_play = rows[np.arange(len(given)), given] | ~np.asarray(counts)
    for wrong in np.flatnonzero(~in_play)[:1]:
        own = np.flatnonzero(rows[wrong])
        of = np.broadcast_to(task, given.shape)[wrong]
        raise ValueError(
            f"targets y must be outputs of task {of}, {own[0]} to {own[-1]}, got "
            f"{given[wrong]}"
        )
