"""Everything a seed carries through a run."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxcl.hooks import OptState
from jaxcl.types import Params, PyTree, State


class Progress(NamedTuple):
    """A seed's position in its task; masked under patience and divergence."""

    step: jax.Array  # int32[] since the task's start
    lr_scale: jax.Array  # float32[]
    best_score: jax.Array  # float32[] of the weights to keep, larger is better
    patience_score: jax.Array  # float32[] the best seen by patience, likewise
    bad_epochs: jax.Array  # int32[] epochs since that best or the last decay
    done: jax.Array  # bool[] whether the seed is done with this task
    failed_task: jax.Array  # int32[], -1 if healthy
    failed_epoch: jax.Array  # int32[]

    @property
    def failed(self) -> jax.Array:
        """bool[] whether the seed has diverged, in this task or before."""
        return self.failed_task >= 0


class SeedState(NamedTuple):
    """Everything a seed carries from epoch to epoch."""

    params: Params
    model_state: PyTree
    opt_state: OptState  # the optimizer's state and the strategy's
    best: PyTree  # (params, model_state), or () if the last weights are used
    progress: Progress

    @property
    def strategy_state(self) -> State:
        return self.opt_state.strategy


def status_of(progress: Progress) -> tuple[str, ...]:
    """Per seed "ok", or when it diverged, counted from 1; takes host arrays [S]."""
    return tuple(
        "ok" if task < 0 else f"failed: task {task + 1}, epoch {epoch + 1}"
        for task, epoch in zip(progress.failed_task, progress.failed_epoch, strict=True)
    )
