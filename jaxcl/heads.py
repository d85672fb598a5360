"""Which outputs of the one classifier are in play, and the loss on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.types import Batch, Setup, TaskLoss

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
