"""A method's forward pass in evaluation mode, and its answers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.checks import require, require_range, require_statistics
from jaxcl.contract import Strategy
from jaxcl.heads import mask_logits
from jaxcl.hooks import OptState
from jaxcl.inputs import context, context_of
from jaxcl.nn.fitting import fitting
from jaxcl.types import Batch, Output, Params, PyTree, Setup, State

Forward = Callable[[Params, PyTree, State, Batch, jax.Array], Output]
"""``(params, model_state, strategy_state, batch, current task) -> Output``"""


def make_forward(setup: Setup, strategy: Strategy) -> Forward:
    """Builds a method's forward pass in evaluation mode."""
    key = jax.random.key(0)  # the network draws nothing

    def forward(params, model_state, strategy_state, batch, current) -> Output:
        ctx = context_of(batch, task=current, key=key, model_state=model_state)
        f = strategy.forward(setup.apply_fn, strategy_state, params.aux, ctx=ctx)
        with fitting(batch.x, setup.example):
            return f(params.net, model_state, batch.x, batch.task, key, False)

    return forward


def predict(
    strategy: Strategy,
    setup: Setup,
    params: Params,
    opt_state: OptState,
    x: jax.Array,
    *,
    task: int | jax.Array,
    current: int | jax.Array | None = None,
    model_state: PyTree | None = None,
) -> jax.Array:
    """A method's answers in your own training loop: logits of the outputs in play.

    The network in evaluation mode with what the method makes of it: HAT's gates, SLDA's
    head. ``predict(...).argmax(-1)`` is the class, among all K outputs. Call it under
    jit where it is called often.

    Args:
      strategy: any `Strategy`.
      setup: the run's `Setup`.
      params: of `init_params`, trained.
      opt_state: of `transform_optimizer`'s transformation.
      x: [B, ...] network inputs.
      task: of the examples, from 0. In a scenario that does not tell the task at test
        time only a model that reads it answers otherwise for another one.
      current: the last task trained. Class-incremental it must be given: the outputs
        of the tasks up to it are in play, and up to `task` alone the question would
        hold half of the answer. Otherwise by default `task`.
      model_state: the model's running statistics, by default none.

    Returns:
      float[B, K]; outputs that are not in play have the lowest finite value.

    Raises:
      ValueError: a task out of range; `current` missing where it must be given; missing
        statistics; inputs unlike the setup's example, on which the model fails.
    """
    require(
        current is not None or setup.mask_by != "task",
        "current must be given in a class-incremental scenario: it is the last task "
        "trained, and the classes of the tasks up to it can be answered",
    )
    current = task if current is None else current
    require_range("task", task, setup.num_tasks)
    require_range("current", current, setup.num_tasks)
    model_state = {} if model_state is None else model_state
    require_statistics(setup.model_state, model_state)
    batch = context(x, jnp.zeros(len(x), jnp.int32), task=task).batch
    now = jnp.asarray(current, jnp.int32)
    out = make_forward(setup, strategy)(
        params, model_state, opt_state.strategy, batch, now
    )
    return mask_logits(setup, out.logits, batch.task, now)
