"""What a strategy is built from and called with: a `Setup`, a `Context`, a `TaskData`.

A training loop of one's own makes them here; the loop of this project does too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.heads import cross_entropy, scenario_mask
from jaxcl.nn import capture, inspection
from jaxcl.nn.capture import LinenModel
from jaxcl.types import (
    AS_IT_IS,
    Batch,
    Codec,
    Context,
    LayerSpec,
    Output,
    PyTree,
    Setup,
    TaskData,
)


def setup_for(
    forward: Callable[[PyTree, jax.Array], jax.Array],
    example: Any,
    *,
    num_outputs: int,
    num_tasks: int,
    heads: tuple[tuple[str, ...], ...],
    scenario: str = "domain",
    layers: tuple[LayerSpec, ...] = (),
) -> Setup:
    """The `Setup` of a model that is a pure function.

    Args:
      forward: ``(net, x) -> logits [B, K]``, any pure function.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K; task- and class-incremental scenarios split it evenly.
      num_tasks: T.
      heads: path prefixes of the classifier's leaves in ``net``.
      scenario: one of `jaxcl.heads.SCENARIOS`.
      layers: the layers, for methods that treat layers.

    Returns:
      A `Setup`.

    Raises:
      ValueError: unknown scenario; K that T tasks cannot share evenly.
    """
    share = num_outputs if scenario == "domain" else num_outputs // num_tasks
    if scenario != "domain" and share * num_tasks != num_outputs:
        raise ValueError(
            f"{num_outputs} outputs cannot be split over {num_tasks} tasks"
        )
    mask, mask_by = scenario_mask(scenario, num_tasks, [share] * num_tasks)

    def apply_fn(net, model_state, x, task, key, train):
        return Output(forward(net, x), model_state, {})

    return Setup(
        apply_fn=apply_fn,
        task_loss=cross_entropy(mask, mask_by),
        layers=layers,
        heads=heads,
        logit_mask=mask,
        mask_by=mask_by,
        num_tasks=num_tasks,
        example=jax.ShapeDtypeStruct(example.shape, example.dtype),
        mixes_examples=False,
    )


def setup_for_linen(
    model: LinenModel,
    example: jax.ShapeDtypeStruct,
    *,
    logit_mask: jax.Array,
    mask_by: str,
    heads: tuple[tuple[str, ...], ...] = (("head",),),
    codec: Codec = AS_IT_IS,
) -> Setup:
    """The `Setup` of a Flax Linen model.

    Args:
      model: called as ``model(x, task, train)``; see `jaxcl.nn.capture.apply_fn`.
      example: shape and dtype of an input batch.
      logit_mask: bool[T, K]; see `jaxcl.heads.scenario_mask`.
      mask_by: "example" or "task"; likewise.
      heads: path prefixes of the classifier's leaves.
      codec: how memories keep inputs.

    Returns:
      A `Setup` with the model's layers and normalisations.

    Raises:
      ValueError: the model has parameters per task for fewer tasks than there are.
    """
    num_tasks = logit_mask.shape[0]
    declared = getattr(model, "num_tasks", None)
    if declared is not None and declared < num_tasks:
        raise ValueError(
            f"the model has parameters for num_tasks={declared} tasks, the stream has "
            f"{num_tasks}"
        )
    init = capture.init_fn(model, example)
    return Setup(
        apply_fn=capture.apply_fn(model),
        task_loss=cross_entropy(logit_mask, mask_by),
        layers=inspection.describe(model, example),
        heads=heads,
        logit_mask=logit_mask,
        mask_by=mask_by,
        num_tasks=num_tasks,
        example=example,
        mixes_examples=getattr(model, "mixes_examples", False),
        codec=codec,
        model_state=jax.eval_shape(init, jax.random.key(0))[1],
        norms=inspection.describe_norms(model, example),
    )


def context(
    x: jax.Array,
    y: jax.Array,
    *,
    task: int | jax.Array,
    step: int | jax.Array = 0,
    seed: int | jax.Array = 0,
    key: jax.Array | None = None,
    **moment: Any,
) -> Context:
    """A `Context` for a training loop of one's own.

    Args:
      x: [B, ...] inputs.
      y: int[B] targets.
      task: the task they belong to, which is the one in training.
      step: since the task's start.
      seed: of the run; the step's default key is drawn from it.
      key: a typed key of this step's own; by default one that differs between seeds,
        tasks and steps.
      **moment: as for `context_of`: epoch, epoch_progress, epoch_fraction,
        task_progress, model_state, cache.

    Returns:
      A `Context` in which every example has weight 1.
    """
    n = x.shape[0]
    batch = Batch(
        x=x,
        y=jnp.asarray(y, jnp.int32),
        task=jnp.full((n,), task, jnp.int32),
        weight=jnp.ones((n,), jnp.float32),
        index=jnp.arange(n),
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
    epoch: int | jax.Array = 0,
    epoch_progress: float | jax.Array = 0.0,
    epoch_fraction: float | jax.Array = 0.0,
    task_progress: float | jax.Array = 0.0,
    model_state: PyTree | None = None,
    cache: PyTree = (),
) -> Context:
    """The `Context` of a step on a batch.

    Args:
      batch: the step's examples.
      task: the task in training.
      key: a typed key of this step's own.
      step: since the task's start.
      epoch: of the task, from 0.
      epoch_progress: (b − 1)/(B − 1) for batch b of the epoch's B.
      epoch_fraction: share of the epoch's examples that came before this batch.
      task_progress: share of the task done.
      model_state: the model's running statistics, by default none.
      cache: what the strategy's ``before_task`` returned.
    """
    return Context(
        task=jnp.asarray(task, jnp.int32),
        step=jnp.asarray(step, jnp.int32),
        epoch=jnp.asarray(epoch, jnp.int32),
        epoch_progress=jnp.asarray(epoch_progress, jnp.float32),
        epoch_fraction=jnp.asarray(epoch_fraction, jnp.float32),
        task_progress=jnp.asarray(task_progress, jnp.float32),
        key=key,
        batch=batch,
        model_state={} if model_state is None else model_state,
        cache=cache,
    )


def array_data(x: jax.Array, y: jax.Array, task: int | jax.Array = 0) -> TaskData:
    """Plain arrays as the `TaskData` that `before_task` and `after_task` read.

    Args:
      x: [N, ...] network inputs.
      y: int[N] targets.
      task: the task they belong to.

    Returns:
      A `TaskData` of N examples.

    Raises:
      ValueError: x and y differ in length, or are empty.
    """
    x, y = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    if x.shape[0] != y.shape[0] or x.shape[0] == 0:
        raise ValueError(
            f"x and y need the same, non-zero number of rows, got {x.shape[0]} and "
            f"{y.shape[0]}"
        )

    def take(index: jax.Array) -> Batch:
        return Batch(
            x=x[index],
            y=y[index],
            task=jnp.full(index.shape, task, jnp.int32),
            weight=jnp.ones(index.shape, jnp.float32),
            index=index,
        )

    return TaskData(take, jnp.asarray(x.shape[0], jnp.int32), x.shape[0])
