"""An epoch of one seed: its loop over batches, then validation and selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.checks import require
from jaxcl.contract import Strategy, no_penalty
from jaxcl.hooks import OptState
from jaxcl.inputs import context_of
from jaxcl.objective import loss_parts, penalty_of
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.ops.trees import tree_where
from jaxcl.training.evaluation import Evaluate
from jaxcl.training.plan import Plan
from jaxcl.training.schedule import make_rate, task_length
from jaxcl.training.selection import mark_failure, select
from jaxcl.training.state import SeedState
from jaxcl.types import Context, PyTree, Setup, TaskData


class EpochMetrics(NamedTuple):
    """The report of an epoch of one seed; see `known` for missing values.

    ``loss`` is the mean over the steps without the penalty, ``penalty`` that of the
    weights after the last step. ``lr_scale`` is the factor of the learning rate due to
    patience; the factor of a schedule is not in it.
    """

    loss: jax.Array
    valid_loss: Any  # jax.Array, or inside jit None without validation data
    valid_accuracy: Any
    lr_scale: jax.Array
    steps: jax.Array
    penalty: Any = None  # jax.Array, or None for a method that has none


def known(metrics: EpochMetrics) -> EpochMetrics:
    """Host arrays [S]: NaN where a seed took no step, or there is no validation data.

    NaN is not set inside jit: ``JAX_DEBUG_NANS`` would report it as an error.
    """
    none = np.full(metrics.steps.shape, np.nan, np.float32)
    loss, accuracy = metrics.valid_loss, metrics.valid_accuracy
    return metrics._replace(
        loss=np.where(metrics.steps > 0, metrics.loss, none),
        valid_loss=none if loss is None else loss,
        valid_accuracy=none if accuracy is None else accuracy,
    )


def make_update(
    setup: Setup, strategy: Strategy, tx: optax.GradientTransformationExtraArgs
) -> Callable[..., tuple]:
    """Builds the function that computes a step's updates and its new states.

    Returns:
      A function from ``(params, opt_state, ctx, lr_scale)`` to ``(updates,
      model_state, opt_state, loss)``, the loss without the penalty.
    """
    gradient = jax.grad(loss_parts(strategy, setup), has_aux=True)

    def update(params, opt_state, ctx: Context, lr_scale: jax.Array):
        grads, (loss, out) = gradient(params, opt_state.strategy, ctx)
        updates, new = tx.update(
            grads, opt_state, params, ctx=ctx, out=out, lr_scale=lr_scale
        )
        return updates, out.model_state, cast(OptState, new), loss

    return update


def make_step(
    setup: Setup, strategy: Strategy, tx: optax.GradientTransformationExtraArgs
) -> Callable[..., tuple]:
    """Builds one step, ``(carry, ctx, lr_scale) -> (carry, loss)``.

    The carry is ``(params, model_state, opt_state)``.
    """
    update = make_update(setup, strategy, tx)

    def step(carry, ctx: Context, lr_scale: jax.Array):
        params, _, opt_state = carry  # the model's state is in the context
        updates, model_state, opt_state, loss = update(params, opt_state, ctx, lr_scale)
        params = optax.apply_updates(params, updates)
        return (params, model_state, opt_state), loss

    return step


def make_epoch(
    setup: Setup,
    strategy: Strategy,
    tx: optax.GradientTransformationExtraArgs,
    plan: Plan,
    evaluate: Evaluate,
    masked: bool,
) -> Callable[..., tuple[SeedState, EpochMetrics]]:
    """Builds an epoch: its loop over batches, then validation and selection.

    ``setup.augmentation`` changes the inputs of each step with a key of the step's own;
    values computed before the task from the unchanged inputs are then not used.
    """
    step, rate = make_step(setup, strategy, tx), make_rate(plan)

    def train(seed, cache, data, task, epoch, key, longest):
        """The loop; returns the seed after it, the sum of losses, the steps taken."""
        before = seed.progress
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = shuffled(order_key, data.size, data.capacity)
        per_epoch = (data.size + plan.batch_size - 1) // plan.batch_size
        length, steps = task_length(plan, task, per_epoch), per_epoch
        if plan.max_steps is not None:
            steps = jnp.clip(plan.max_steps - before.step, 0, per_epoch)
        steps = jnp.where(before.done, 0, steps)

        def body(i, carry):
            carry, total = carry
            position, weight = batch_positions(order, i, plan.batch_size, data.size)
            number = before.step + i
            batch = data.take(position)._replace(weight=weight)
            own_key, original = jax.random.fold_in(step_key, i), None
            if setup.augmentation is not None:
                own_key, augment_key = jax.random.split(own_key)
                original = batch.x
                batch = batch._replace(
                    x=setup.augmentation(original, augment_key),
                    index=jnp.full_like(batch.index, -1),
                )
            progress = number / length
            ctx = context_of(
                batch,
                task=task,
                key=own_key,
                step=number,
                epoch=epoch,
                epoch_progress=i / jnp.maximum(per_epoch - 1, 1),
                epoch_fraction=i * plan.batch_size / data.size,
                task_progress=progress,
                model_state=carry[1],
                cache=cache,
                original=original,
            )
            scale = before.lr_scale
            if rate is not None:
                scale = scale * rate(jnp.float32(progress), task)
            new, loss = step(carry, ctx, scale)
            if masked:
                live = i < steps
                new = tree_where(live, new, carry)
                loss = jnp.where(live, loss, 0)
            return new, total + loss

        carry = (seed.params, seed.model_state, seed.opt_state)
        bound = longest if masked else steps
        carry, total = jax.lax.fori_loop(0, bound, body, (carry, jnp.zeros(())))
        params, model_state, opt_state = carry
        seed = seed._replace(
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            progress=before._replace(step=before.step + steps),
        )
        return seed, total, steps

    def epoch(
        seed: SeedState,
        cache: PyTree,
        data: TaskData,
        valid: TaskData | None,
        task: jax.Array,
        epoch: jax.Array,
        key: jax.Array,
        longest: jax.Array,
    ) -> tuple[SeedState, EpochMetrics]:
        """Trains over the task's data once, then validates, selects and decays.

        Args:
          seed: the seed's state.
          cache: from ``before_task``.
          data: the task's training data.
          valid: its validation data, or None.
          task: int32[].
          epoch: int32[] from 0.
          key: the seed's key for this task.
          longest: int32[] steps of the longest seed's epoch; used only if ``masked``.
        """
        lr_scale = seed.progress.lr_scale
        seed, total, steps = train(seed, cache, data, task, epoch, key, longest)
        trained = steps > 0
        loss = total / jnp.maximum(steps, 1)
        penalty = valid_loss = valid_accuracy = None
        if strategy.penalty is not no_penalty:
            penalty = penalty_of(strategy, seed.params, seed.strategy_state, task)
        if valid is not None:
            valid_accuracy, valid_loss = evaluate(seed, valid, task)
            state = seed.strategy_state
            charged = strategy.validation(seed.params, state, task=task)
            shape = list(jnp.shape(charged))
            require(not shape, f"a validation hook has to give a scalar, got {shape}")
            valid_loss = (valid_loss + charged).astype(jnp.float32)
            seed = select(plan, seed, valid_accuracy, valid_loss, trained)
        if plan.max_steps is not None:
            over = seed.progress.step >= plan.max_steps
            done = seed.progress.done | over
            seed = seed._replace(progress=seed.progress._replace(done=done))
        seed = mark_failure(seed, total, trained, task, epoch)
        return seed, EpochMetrics(
            *(loss, valid_loss, valid_accuracy, lr_scale, steps, penalty)
        )

    return epoch
