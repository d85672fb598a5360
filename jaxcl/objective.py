"""Turns a strategy into a plain loss.

For your own training loop; this project's loop uses the same functions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.checks import require, require_range, require_statistics
from jaxcl.contract import Strategy, no_penalty
from jaxcl.inputs import require_in_play
from jaxcl.kinds import require_loss
from jaxcl.nn.fitting import fitting
from jaxcl.types import ApplyFn, Context, Output, Params, Setup, State


def transform_loss(strategy: Strategy, setup: Setup):
    """A strategy's loss as a plain function to differentiate.

    With f the model, f' = ``strategy.forward`` of it and ℓ the task's loss, the result
    is ``strategy.loss`` of ``(params, ctx) ↦ ℓ(f'(params.net, ctx.batch.x))``, plus
    ``strategy.penalty``.

    Args:
      strategy: any `Strategy`. You may add terms to its loss: the form for beside
        others is taken (`Strategy.beside`).
      setup: the run's `Setup`; gives f and ℓ.

    Returns:
      ``(params, strategy_state, ctx) -> (scalar, Output)``, for
      ``jax.value_and_grad(..., has_aux=True)``. The output's ``model_state`` is what
      the next step starts from. It raises a ValueError if the context lacks the model's
      running statistics, the model does not give logits [B, K], or the strategy's hook
      gives anything else, and, called outside jit, for a task out of range or a target
      that is not in play in its task.

    Example: `jaxcl.transform_optimizer` shows one step of your own loop.
    """
    parts = loss_parts(strategy.beside or strategy, setup)

    def loss_fn(params: Params, state: State, ctx: Context):
        value, (_, out) = parts(params, state, ctx)
        return value, out

    return loss_fn


def loss_parts(strategy: Strategy, setup: Setup):
    """`transform_loss` that gives ``(value, (value without the penalty, Output))``.

    A loop that reads only the second value never computes the penalty's: its gradient
    needs no sum over all parameters, which takes as long as half a step of a small MLP.
    """

    def loss_fn(params: Params, state: State, ctx: Context):
        require_range("task", ctx.task, setup.num_tasks)
        require_range("targets y", ctx.batch.y, setup.logit_mask.shape[1])
        by_example = setup.mask_by == "example"
        row = ctx.batch.task if by_example else ctx.task
        require_in_play(setup.logit_mask, ctx.batch.y, row, ctx.batch.weight > 0)
        require_statistics(setup.model_state, ctx.model_state)

        def bare(p: Params, c: Context) -> tuple[jax.Array, Output]:
            f: ApplyFn = strategy.forward(setup.apply_fn, state, p.aux, ctx=c)
            with fitting(c.batch.x, setup.example):
                out = f(p.net, c.model_state, c.batch.x, c.batch.task, c.key, True)
            shape = (c.batch.x.shape[0], setup.logit_mask.shape[1])
            require(
                out.logits.shape == shape,
                f"the model has to give logits {list(shape)}, it gives "
                f"{list(out.logits.shape)}",
            )
            floats = jnp.issubdtype(out.logits.dtype, jnp.floating)
            require(floats, f"the model has to give floats, not {out.logits.dtype}")
            return setup.task_loss(out.logits, c.batch, c.task), out

        found = strategy.loss(bare, state)(params, ctx)
        require_loss(found, Output)
        value, out = found
        chosen = strategy.model_state(
            out.model_state, state, old=ctx.model_state, ctx=ctx
        )
        found = value, out._replace(model_state=chosen)
        if strategy.penalty is not no_penalty:
            value = value + penalty_of(strategy, params, state, ctx.task)
        return value, found

    return loss_fn


def penalty_of(
    strategy: Strategy, params: Params, state: State, task: jax.Array
) -> jax.Array | float:
    """A strategy's penalty.

    Raises:
      ValueError: the hook gives no scalar.
    """
    value = strategy.penalty(params, state, task=task)
    shape = list(jnp.shape(value))
    require(not shape, f"a penalty hook has to give a scalar, got {shape}")
    return value
