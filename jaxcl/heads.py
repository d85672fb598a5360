"""Which outputs of the one classifier are in play, and the loss on them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.types import (
    Batch,
    Context,
    LayerSpec,
    Output,
    PyTree,
    Setup,
    TaskLoss,
)

SCENARIOS = ("task", "domain", "class")


def scenario_mask(
    scenario: str, num_tasks: int, classes_per_task: list[int]
) -> tuple[jax.Array, str]:
    """The logit mask of a scenario and whose row of it applies.

    task:   each task its own outputs; row of the example's task, known at test time.
    domain: all tasks share one set of outputs; every row is full.
    class:  outputs of the tasks seen so far; row of the task in training.

    Args:
      scenario: one of `SCENARIOS`.
      num_tasks: T.
      classes_per_task: number of classes of each task.

    Returns:
      bool[T, K] and "example" or "task", for `Setup.logit_mask` and `Setup.mask_by`.

    Raises:
      ValueError: an unknown scenario; domain-incremental tasks of unequal size.
    """
    if scenario not in SCENARIOS:
        raise ValueError(
            f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}"
        )
    if scenario == "domain":
        if len(set(classes_per_task)) > 1:
            raise ValueError(
                "domain-incremental tasks need equally many classes, got "
                f"{classes_per_task}"
            )
        return jnp.ones((num_tasks, classes_per_task[0]), bool), "example"
    owner = jnp.repeat(
        jnp.arange(num_tasks),
        jnp.array(classes_per_task),
        total_repeat_length=sum(classes_per_task),
    )
    row = jnp.arange(num_tasks)[:, None]
    if scenario == "task":
        return owner[None, :] == row, "example"
    return owner[None, :] <= row, "task"


def mask_logits(
    setup: Setup, logits: jax.Array, example_task: jax.Array, current: jax.Array
) -> jax.Array:
    """Puts outputs that are not in play at the lowest finite value.

    Args:
      setup: gives the mask.
      logits: float[B, K].
      example_task: int32[B].
      current: int32[] the task in training (in evaluation, the last one trained).

    Returns:
      float[B, K]. The lowest finite value, not −∞: −∞ turns gradients into NaN.
    """
    return _masked(setup.logit_mask, setup.mask_by, logits, example_task, current)


def _masked(mask, mask_by, logits, example_task, current):
    rows = mask[example_task] if mask_by == "example" else mask[current][None]
    return jnp.where(rows, logits, jnp.finfo(logits.dtype).min)


def cross_entropy(mask: jax.Array, mask_by: str) -> TaskLoss:
    """The weighted mean cross-entropy over the outputs in play.

    ℓ = − Σ_b w_b log softmax(masked logits)_{b, y_b} / Σ_b w_b

    Args:
      mask: bool[T, K].
      mask_by: "example" or "task"; see `scenario_mask`.

    Returns:
      ``(logits[B, K], batch, current task) -> scalar``.
    """

    def task_loss(logits: jax.Array, batch: Batch, current: jax.Array) -> jax.Array:
        logits = _masked(mask, mask_by, logits, batch.task, current)
        each = -jax.nn.log_softmax(logits)[jnp.arange(batch.y.shape[0]), batch.y]
        return jnp.sum(each * batch.weight) / jnp.maximum(batch.weight.sum(), 1)

    return task_loss


def setup_for(
    forward: Any,
    example: Any,
    *,
    num_outputs: int,
    num_tasks: int,
    heads: tuple[tuple[str, ...], ...],
    scenario: str = "domain",
    layers: tuple[LayerSpec, ...] = (),
) -> Setup:
    """A `Setup` for a model of one's own, outside this project's protocol.

    Args:
      forward: ``(net, x) -> logits [B, K]``, any pure function.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K; task- and class-incremental scenarios split it evenly.
      num_tasks: T.
      heads: path prefixes of the classifier's leaves in ``net``.
      scenario: one of `SCENARIOS`.
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


def context(
    x: jax.Array,
    y: jax.Array,
    *,
    task: int | jax.Array,
    step: int | jax.Array = 0,
    key: jax.Array | None = None,
    epoch_progress: float | jax.Array = 0.0,
    task_progress: float | jax.Array = 0.0,
    model_state: PyTree | None = None,
    cache: PyTree = (),
) -> Context:
    """A `Context` for a training loop of one's own.

    Args:
      x: [B, ...] inputs.
      y: int[B] targets.
      task: the task they belong to, which is the one in training.
      step: since the task's start.
      key: a typed key of this step's own; by default derived from ``step``.
      epoch_progress: share of the epoch done.
      task_progress: share of the task done.
      model_state: the model's running statistics, by default none.
      cache: what the strategy's ``prepare`` returned.

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
    return Context(
        task=jnp.asarray(task, jnp.int32),
        step=jnp.asarray(step, jnp.int32),
        epoch_progress=jnp.asarray(epoch_progress, jnp.float32),
        task_progress=jnp.asarray(task_progress, jnp.float32),
        key=jax.random.key(step) if key is None else key,
        batch=batch,
        model_state={} if model_state is None else model_state,
        cache=cache,
    )
