"""Training one seed on one task: the pure functions that are laid over all seeds.

Nothing here knows of devices, files or other seeds. An epoch is one loop on the device
over batches of shuffled positions; its length is a traced bound, so that tasks of any
size share one compilation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxcl.compose import OptState, hook_in, init_params, transform_loss
from jaxcl.ops.linalg import tree_where
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.setup import context_of
from jaxcl.training.evaluation import Evaluate, make_evaluate
from jaxcl.training.plan import Plan
from jaxcl.training.selection import mark_failure, select
from jaxcl.training.state import Progress, SeedState
from jaxcl.types import Context, PyTree, Setup, Strategy, TaskData

InitModel = Callable[[jax.Array], tuple[PyTree, PyTree]]
"""``key -> (net, model_state)``"""
Report = OrderedDict[str, OrderedDict[str, jax.Array]]
"""quantity -> layer -> float32[]"""


class EpochMetrics(NamedTuple):
    """What an epoch reports of a seed; NaN where a seed did not train."""

    loss: jax.Array
    valid_loss: jax.Array
    valid_accuracy: jax.Array
    lr_scale: jax.Array
    steps: jax.Array


class Trainer(NamedTuple):
    """Pure functions of one seed; see `make_trainer`."""

    init: Callable[..., SeedState]
    begin: Callable[..., SeedState]
    before_task: Callable[..., PyTree]
    epoch: Callable[..., tuple[SeedState, EpochMetrics]]
    end: Callable[..., SeedState]
    evaluate: Evaluate
    report: Callable[..., Report]


def make_trainer(
    setup: Setup,
    strategy: Strategy,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    init_model: InitModel,
    *,
    masked: bool,
) -> Trainer:
    """Builds the functions that train and evaluate one seed.

    Args:
      setup: the run's `Setup`.
      strategy: any `Strategy`.
      optimizer: optax transformation, restarted at the start of each task.
      plan: schedule and selection.
      init_model: ``key -> (net, model_state)``.
      masked: True where seeds run in lockstep (`jax.vmap`): every seed takes the
        longest seed's number of steps and the surplus is undone. False where each
        runs its own loop (`jax.lax.map`).

    Returns:
      A `Trainer`.
    """
    inner = optax.chain(optimizer, scale_by_lr())
    tx = hook_in(strategy, inner, setup)
    evaluate = make_evaluate(setup, strategy, plan.eval_batch_size)

    def before_task(seed: SeedState, data: TaskData) -> PyTree:
        return strategy.before_task(seed.strategy_state, data)

    def report(seed: SeedState) -> Report:
        # Jit would sort the keys of a plain dict; a figure wants the strategy's order.
        return OrderedDict(
            (
                quantity,
                OrderedDict((k, jnp.asarray(v, jnp.float32)) for k, v in part.items()),
            )
            for quantity, part in strategy.report(seed.strategy_state).items()
        )

    return Trainer(
        init=make_init(strategy, tx, plan, init_model),
        begin=make_begin(inner, plan),
        before_task=before_task,
        epoch=make_epoch(setup, strategy, tx, plan, evaluate, masked),
        end=make_end(strategy, plan),
        evaluate=evaluate,
        report=report,
    )


def scale_by_lr() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by ``lr_scale``, an extra argument of ``update``.

    Patience is per seed, so the rate it decays has to be traced.
    """

    def update(updates, state, params=None, *, lr_scale, **extra):
        return jax.tree.map(lambda u: u * lr_scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def make_init(
    strategy: Strategy,
    tx: optax.GradientTransformationExtraArgs,
    plan: Plan,
    init_model: InitModel,
) -> Callable[[jax.Array], SeedState]:
    """Builds ``key -> SeedState``, what a seed starts its first task from."""

    def init(key: jax.Array) -> SeedState:
        model_key, strategy_key = jax.random.split(key)
        net, model_state = init_model(model_key)
        params = init_params(strategy, strategy_key, net)
        zero, none = jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)
        return SeedState(
            params=params,
            model_state=model_state,
            opt_state=tx.init(params),
            best=(params, model_state) if plan.select == "best" else (),
            progress=Progress(
                step=zero,
                lr_scale=jnp.ones(()),
                best_score=jnp.full((), -jnp.inf),
                patience_score=jnp.full((), -jnp.inf),
                bad_epochs=zero,
                done=jnp.zeros((), bool),
                failed_task=none,
                failed_epoch=none,
            ),
        )

    return init


def make_begin(
    inner: optax.GradientTransformation, plan: Plan
) -> Callable[..., SeedState]:
    """Builds the start of a task: optimizer, patience and selection begin anew."""

    def begin(seed: SeedState, real: jax.Array, rate: jax.Array) -> SeedState:
        """Restarts a seed; what only pads does not train.

        Args:
          seed: the seed's state.
          real: bool[] whether this is a seed and not padding.
          rate: float32[] what the learning rate is multiplied by from the start.
        """
        zero = jnp.zeros((), jnp.int32)
        progress = seed.progress._replace(
            step=zero,
            lr_scale=rate,
            best_score=jnp.full((), -jnp.inf),
            patience_score=jnp.full((), -jnp.inf),
            bad_epochs=zero,
            done=~real | seed.progress.failed,
        )
        return seed._replace(
            opt_state=seed.opt_state._replace(inner=inner.init(seed.params)),
            best=(seed.params, seed.model_state) if plan.select == "best" else (),
            progress=progress,
        )

    return begin


def make_step(
    setup: Setup, strategy: Strategy, tx: optax.GradientTransformationExtraArgs
) -> Callable[..., tuple]:
    """Builds one step, ``(carry, ctx, lr_scale) -> (carry, loss)``.

    The carry is ``(params, model_state, opt_state)``.
    """
    loss_fn = transform_loss(strategy, setup)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def step(carry, ctx: Context, lr_scale: jax.Array):
        params, model_state, opt_state = carry
        (loss, out), grads = gradient(params, opt_state.strategy, ctx)
        updates, new = tx.update(
            grads, opt_state, params, ctx=ctx, out=out, lr_scale=lr_scale
        )
        opt_state = cast(OptState, new)
        model_state = strategy.model_state(
            out.model_state, opt_state.strategy, old=model_state, ctx=ctx
        )
        return (optax.apply_updates(params, updates), model_state, opt_state), loss

    return step


def make_epoch(
    setup: Setup,
    strategy: Strategy,
    tx: optax.GradientTransformationExtraArgs,
    plan: Plan,
    evaluate: Evaluate,
    masked: bool,
) -> Callable[..., tuple[SeedState, EpochMetrics]]:
    """Builds an epoch: its loop over batches, then validation and what follows it."""
    step = make_step(setup, strategy, tx)

    def train(seed, cache, data, task, epoch, key, longest):
        """The loop: the seed after it, the sum of its losses, the steps it took."""
        before = seed.progress
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = shuffled(order_key, data.size, data.capacity)
        per_epoch = (data.size + plan.batch_size - 1) // plan.batch_size
        limits = [] if plan.epochs is None else [per_epoch * plan.epochs]
        steps = per_epoch
        if plan.max_steps is not None:
            limits.append(jnp.asarray(plan.max_steps))
            steps = jnp.clip(plan.max_steps - before.step, 0, per_epoch)
        steps = jnp.where(before.done, 0, steps)

        def body(i, carry):
            carry, total = carry
            position, weight = batch_positions(order, i, plan.batch_size, data.size)
            number = before.step + i
            ctx = context_of(
                data.take(position)._replace(weight=weight),
                task=task,
                key=jax.random.fold_in(step_key, i),
                step=number,
                epoch=epoch,
                epoch_progress=i / jnp.maximum(per_epoch - 1, 1),
                epoch_fraction=i * plan.batch_size / data.size,
                task_progress=number / reduce(jnp.minimum, limits),
                model_state=carry[1],
                cache=cache,
            )
            new, loss = step(carry, ctx, before.lr_scale)
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
          longest: int32[] steps of the longest seed's epoch; read if ``masked``.
        """
        lr_scale = seed.progress.lr_scale
        seed, total, steps = train(seed, cache, data, task, epoch, key, longest)
        trained = steps > 0
        loss = jnp.where(trained, total / jnp.maximum(steps, 1), jnp.nan)
        valid_loss = valid_accuracy = jnp.full((), jnp.nan)
        if valid is not None:
            valid_accuracy, valid_loss = evaluate(seed, valid, task)
            state = seed.strategy_state
            valid_loss = valid_loss + strategy.validation(seed.params, state, task=task)
            seed = select(plan, seed, valid_accuracy, valid_loss, trained)
        if plan.max_steps is not None:
            over = seed.progress.step >= plan.max_steps
            done = seed.progress.done | over
            seed = seed._replace(progress=seed.progress._replace(done=done))
        seed = mark_failure(seed, total, trained, task, epoch)
        return seed, EpochMetrics(loss, valid_loss, valid_accuracy, lr_scale, steps)

    return epoch


def make_end(strategy: Strategy, plan: Plan) -> Callable[..., SeedState]:
    """Builds the end of a task."""

    def end(seed: SeedState, data: TaskData, task, key) -> SeedState:
        """Loads the selected weights and lets the strategy consolidate."""
        if plan.select == "best":
            params, model_state = seed.best
            seed = seed._replace(params=params, model_state=model_state)

        def consolidate(seed: SeedState) -> SeedState:
            params, state = strategy.after_task(
                seed.params,
                seed.strategy_state,
                data=data,
                model_state=seed.model_state,
                task=task,
                key=key,
            )
            opt_state = seed.opt_state._replace(strategy=state)
            return seed._replace(params=params, opt_state=opt_state)

        failed = seed.progress.failed
        return jax.lax.cond(failed, lambda seed: seed, consolidate, seed)

    return end
