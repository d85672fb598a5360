"""Everything a seed carries through a run, and the moments it is looked at in."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.types import Batch, Context, Params, PyTree, State, TaskData


class Progress(NamedTuple):
    """Where a seed stands in its task; masked under patience and divergence."""

    step: jax.Array  # int32[] since the task's start
    lr_scale: jax.Array  # float32[]
    best_score: jax.Array  # float32[] of the weights to keep, larger is better
    patience_score: jax.Array  # float32[] the best that patience has seen, likewise
    bad_epochs: jax.Array  # int32[] since that or the last decay
    done: jax.Array  # bool[] with this task
    failed_task: jax.Array  # int32[], -1 if healthy
    failed_epoch: jax.Array  # int32[]


class SeedState(NamedTuple):
    """Everything a seed carries from epoch to epoch."""

    params: Params
    model_state: PyTree
    opt_state: PyTree
    strategy_state: State
    best: PyTree  # (params, model_state), or () where the last weights are taken
    progress: Progress


def context_of(
    seed: SeedState, batch: Batch, task, key, cache=(), progress=1.0
) -> Context:
    one = jnp.full((), progress, jnp.float32)
    return Context(
        task=task,
        step=seed.progress.step,
        epoch=jnp.full((), -1, jnp.int32),
        epoch_progress=one,
        epoch_fraction=one,
        task_progress=one,
        key=key,
        batch=batch,
        model_state=seed.model_state,
        cache=cache,
    )


def idle_context(seed: SeedState, data: TaskData, task, key, cache) -> Context:
    """The context of a task's end: its batch is the task's first example."""
    batch = data.take(jnp.zeros((1,), jnp.int32))
    return context_of(seed, batch, task, key, cache)
