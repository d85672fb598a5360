"""The learning rate over a task, as a factor of the optimizer's own rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import optax

from jaxcl.training.plan import Plan

Rate = Callable[[jax.Array, jax.Array], jax.Array]
"""``(progress in [0, 1), task) -> factor``"""


def task_length(plan: Plan, task: jax.Array, per_epoch: jax.Array) -> jax.Array:
    """Steps of a task that its plan allows: of its epochs, or ``max_steps``.

    A step's share of the task is its number divided by this.

    Args:
      plan: has ``epochs`` or ``max_steps``.
      task: int32[].
      per_epoch: int32[] steps in an epoch of the task.
    """
    limits = []
    if plan.epochs is not None:
        epochs = plan.epochs
        if plan.first_epochs:  # with 0 there is no step
            epochs = jnp.where(task == 0, plan.first_epochs, epochs)
        limits.append(per_epoch * epochs)
    if plan.max_steps is not None:
        limits.append(jnp.asarray(plan.max_steps))
    return reduce(jnp.minimum, limits)


def make_rate(plan: Plan) -> Rate | None:
    """Builds the factor by which a step's updates are multiplied.

    With p the share of the task's steps that are done, w = ``plan.warmup`` and
    q = (p − w)/(1 − w), at each step, for task t from 0:

        d · p/w                 while p < w
        d · 1                   constant
        d · (1 + cos π q)/2     cosine
        d · (1 − q)             linear

    where d = max(decayᵗ, lr_floor/lr).

    A task's length differs between tasks and seeds and is not known when the step is
    compiled; optax's schedules are therefore read at p, not at a count of steps.

    Args:
      plan: its ``schedule``, ``warmup``, ``decay_per_task`` and ``lr_floor``.

    Returns:
      The function that gives the factor, or None if it is always 1.
    """
    w = plan.warmup
    # optax's annotations say int, but its arithmetic works for any length.
    rest = 1 - w
    after = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, rest),  # pyright: ignore
        "linear": optax.linear_schedule(1.0, 0.0, rest),  # pyright: ignore
    }[plan.schedule]
    if w:
        rise = optax.linear_schedule(0.0, 1.0, w)  # pyright: ignore
        shape = optax.join_schedules([rise, after], [w])  # pyright: ignore
    else:
        shape = after
    if plan.schedule == "constant" and not w and plan.decay_per_task == 1:
        return None

    def rate(progress, task):
        decay = plan.decay_per_task**task
        if plan.lr_floor:
            decay = jnp.maximum(decay, plan.lr_floor / plan.lr)
        return jnp.asarray(shape(progress) * decay)

    return rate
