"""Training one seed on one task: the pure functions that the protocol lays over seeds.

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

from jaxcl.compose import transform_loss, transform_optimizer
from jaxcl.ops.linalg import tree_where
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.training.evaluation import make_evaluate
from jaxcl.training.plan import Plan
from jaxcl.training.state import Progress, SeedState, idle_context
from jaxcl.types import (
    Context,
    Params,
    PyTree,
    Setup,
    State,
    Strategy,
    TaskData,
)


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
    prepare: Callable[..., PyTree]
    epoch: Callable[..., tuple[SeedState, EpochMetrics]]
    end: Callable[..., SeedState]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    report: Callable[..., OrderedDict[str, jax.Array]]


def scale_by_lr() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by ``lr_scale``, an extra argument of ``update``.

    Patience is per seed, so the rate it decays has to be traced.
    """

    def update(updates, state, params=None, *, lr_scale, **extra):
        return jax.tree.map(lambda u: u * lr_scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def make_trainer(
    setup: Setup,
    strategy: Strategy,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    init_model: Callable[[jax.Array], tuple[PyTree, PyTree]],
    *,
    masked: bool,
) -> Trainer:
    """Builds the functions that train and evaluate one seed.

    Args:
      setup: the run's `Setup`.
      strategy: any `Strategy`.
      optimizer: optax transformation, restarted at each task.
      plan: schedule and selection.
      init_model: ``key -> (net, model_state)``.
      masked: True where seeds run in lockstep (`jax.vmap`): every seed takes the
        longest seed's number of steps and the surplus is undone. False where each
        runs its own loop (`jax.lax.map`).

    Returns:
      A `Trainer`.
    """
    inner = optax.chain(optimizer, scale_by_lr())
    loss_fn = transform_loss(strategy, setup.task_loss, setup.apply_fn)

    def init(key: jax.Array) -> SeedState:
        model_key, strategy_key = jax.random.split(key)
        net, model_state = init_model(model_key)
        aux, state = strategy.init(strategy_key, net)
        params = Params(net, aux)
        zero, none = jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)
        return SeedState(
            params=params,
            model_state=model_state,
            opt_state=inner.init(params),
            strategy_state=state,
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

    def begin(seed: SeedState, real: jax.Array, rate: jax.Array) -> SeedState:
        """Restarts optimizer, patience and selection; what only pads does not train.

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
            done=~real | (seed.progress.failed_task >= 0),
        )
        return seed._replace(
            opt_state=inner.init(seed.params),
            best=(seed.params, seed.model_state) if plan.select == "best" else (),
            progress=progress,
        )

    evaluate = make_evaluate(setup, strategy, plan.eval_batch_size)

    def prepare(seed: SeedState, data: TaskData) -> PyTree:
        return strategy.prepare(seed.strategy_state, data)

    def train_step(carry, ctx: Context, lr_scale: jax.Array):
        params, _, opt_state, state = carry
        (loss, out), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, state, ctx
        )
        tx = transform_optimizer(strategy, inner, state, setup)
        updates, carried = tx.update(
            grads, (opt_state, state), params, ctx=ctx, out=out, lr_scale=lr_scale
        )
        opt_state, state = cast(tuple[PyTree, State], carried)
        model_state = strategy.model_state(state, ctx.model_state, out.model_state, ctx)
        params = optax.apply_updates(params, updates)
        return (params, model_state, opt_state, state), loss

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
          cache: from ``prepare``.
          data: the task's training data.
          valid: its validation data, or None.
          task: int32[].
          epoch: int32[] from 0.
          key: the seed's key for this task.
          longest: int32[] steps of the longest seed's epoch; read if ``masked``.
        """
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
            inner_carry, total = carry
            position, weight = batch_positions(order, i, plan.batch_size, data.size)
            step = before.step + i
            ctx = Context(
                task=task,
                step=step,
                epoch=epoch,
                epoch_progress=i / jnp.maximum(per_epoch - 1, 1),
                epoch_fraction=i * plan.batch_size / data.size,
                task_progress=step / reduce(jnp.minimum, limits),
                key=jax.random.fold_in(step_key, i),
                batch=data.take(position)._replace(weight=weight),
                model_state=inner_carry[1],
                cache=cache,
            )
            new, loss = train_step(inner_carry, ctx, before.lr_scale)
            if masked:
                live = i < steps
                new = tree_where(live, new, inner_carry)
                loss = jnp.where(live, loss, 0)
            return new, total + loss

        carry = (seed.params, seed.model_state, seed.opt_state, seed.strategy_state)
        bound = longest if masked else steps
        carry, total = jax.lax.fori_loop(0, bound, body, (carry, jnp.zeros(())))
        seed = SeedState(*carry, best=seed.best, progress=before)
        trained = steps > 0
        loss = jnp.where(trained, total / jnp.maximum(steps, 1), jnp.nan)

        # A sum of squares overflows before a weight does; look at the weights.
        finite = [jnp.isfinite(p).all() for p in jax.tree.leaves(seed.params)]
        healthy = jnp.isfinite(total) & jnp.stack(finite).all()
        failed = trained & ~healthy & (before.failed_task < 0)

        if valid is None:
            valid_loss = valid_accuracy = jnp.full((), jnp.nan)
            seed = seed._replace(
                progress=before._replace(step=before.step + steps, done=before.done)
            )
        else:
            valid_accuracy, valid_loss = evaluate(seed, valid, task)
            ctx = idle_context(seed, valid, task, key, cache)
            charge = strategy.validation(seed.strategy_state, seed.params, ctx)
            valid_loss = valid_loss + charge
            seed = select(seed, valid_accuracy, valid_loss, trained, steps)
        progress = seed.progress
        if plan.max_steps is not None:
            progress = progress._replace(
                done=progress.done | (progress.step >= plan.max_steps)
            )
        progress = progress._replace(
            done=progress.done | failed,
            failed_task=jnp.where(failed, task, progress.failed_task),
            failed_epoch=jnp.where(failed, epoch, progress.failed_epoch),
        )
        metrics = EpochMetrics(loss, valid_loss, valid_accuracy, before.lr_scale, steps)
        return seed._replace(progress=progress), metrics

    def select(seed, accuracy, loss, trained, steps) -> SeedState:
        """Keeps the best weights; decays the rate of a seed that has stalled."""
        p = seed.progress
        scores = {"accuracy": accuracy, "loss": -loss}
        score, followed = scores[plan.select_metric], scores[plan.patience_metric]
        better = trained & (score > p.best_score)
        progressed = trained & (followed > p.patience_score)
        bad = jnp.where(progressed, 0, p.bad_epochs + 1)
        lr_scale, done = p.lr_scale, p.done
        if plan.patience is not None:
            decay = trained & (bad >= plan.patience)
            lr_scale = jnp.where(decay, lr_scale / plan.lr_factor, lr_scale)
            bad = jnp.where(decay, 0, bad)
            done = done | (decay & (plan.lr * lr_scale < plan.lr_min))
        best = seed.best
        if plan.select == "best":
            best = tree_where(better, (seed.params, seed.model_state), best)
        return seed._replace(
            best=best,
            progress=p._replace(
                step=p.step + steps,
                lr_scale=lr_scale,
                best_score=jnp.where(better, score, p.best_score),
                patience_score=jnp.where(progressed, followed, p.patience_score),
                bad_epochs=jnp.where(trained, bad, p.bad_epochs),
                done=done,
            ),
        )

    def end(seed: SeedState, cache: PyTree, data: TaskData, task, key) -> SeedState:
        """Loads the selected weights and lets the strategy consolidate."""
        if plan.select == "best":
            params, model_state = seed.best
            seed = seed._replace(params=params, model_state=model_state)
        ctx = idle_context(seed, data, task, key, cache)

        def consolidate(seed: SeedState) -> SeedState:
            params, state = strategy.after_task(
                seed.strategy_state, seed.params, seed.model_state, ctx, data
            )
            return seed._replace(params=params, strategy_state=state)

        failed = seed.progress.failed_task >= 0
        return jax.lax.cond(failed, lambda seed: seed, consolidate, seed)

    def report(seed: SeedState) -> OrderedDict[str, jax.Array]:
        """What the strategy says of its state, as float32 scalars.

        Jit would sort the keys of a plain dict; a figure wants the strategy's order.
        """
        values = strategy.report(seed.strategy_state)
        return OrderedDict((k, jnp.asarray(v, jnp.float32)) for k, v in values.items())

    return Trainer(init, begin, prepare, epoch, end, evaluate, report)
