"""Trains one seed on one task: pure functions that then run over all seeds.

Nothing here depends on devices, files or other seeds. An epoch is one loop on the
device over batches of shuffled positions; its length is a traced bound, so that tasks
of any size share one compilation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcl.checks import require
from jaxcl.contract import Strategy
from jaxcl.hooks import hook_in, init_params
from jaxcl.kinds import require_pair
from jaxcl.training.epoch import EpochMetrics, make_epoch
from jaxcl.training.evaluation import Evaluate, make_evaluate
from jaxcl.training.plan import Plan
from jaxcl.training.state import Progress, SeedState
from jaxcl.types import PyTree, Setup, TaskData

InitModel = Callable[[jax.Array], tuple[PyTree, PyTree]]
"""``key -> (net, model_state)``"""
Report = OrderedDict[str, OrderedDict[str, jax.Array]]
"""quantity -> layer -> float32[]"""


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
      masked: True if seeds run in lockstep (`jax.vmap`): every seed takes the longest
        seed's number of steps, and surplus steps are undone. False if each runs its own
        loop (`jax.lax.map`).

    Returns:
      A `Trainer`.
    """
    inner = optax.chain(optimizer, scale_by_lr())
    tx = hook_in(strategy, inner, setup)
    evaluate = make_evaluate(setup, strategy, plan.eval_batch_size)

    def before_task(seed: SeedState, data: TaskData, task: jax.Array) -> PyTree:
        return strategy.before_task(
            seed.params,
            seed.strategy_state,
            data=data,
            model_state=seed.model_state,
            task=task,
        )

    def report(seed: SeedState) -> Report:
        # Jit would sort the keys of a plain dict; figures need the strategy's order.
        found = strategy.report(seed.strategy_state)
        for quantity, part in found.items():
            for layer, value in part.items():
                require(
                    jnp.shape(value) == (),
                    f"a report hook has to give scalars, got {list(jnp.shape(value))} "
                    f"as {quantity!r} of {layer!r}",
                )
        return OrderedDict(
            (q, OrderedDict((k, jnp.asarray(v, jnp.float32)) for k, v in part.items()))
            for q, part in found.items()
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

    Each seed has its own patience, so the rate that it decays has to be traced.
    """

    def update(updates, state, params=None, *, lr_scale, **extra):
        return jax.tree.map(lambda u: (u * lr_scale).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def make_init(
    strategy: Strategy,
    tx: optax.GradientTransformationExtraArgs,
    plan: Plan,
    init_model: InitModel,
) -> Callable[[jax.Array], SeedState]:
    """Builds ``key -> SeedState``, the state in which a seed starts its first task."""

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
                lr_scale=jnp.ones((), jnp.float32),
                best_score=jnp.full((), -jnp.inf, jnp.float32),
                patience_score=jnp.full((), -jnp.inf, jnp.float32),
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
    """Builds the start of a task: it restarts optimizer, patience and selection."""

    def begin(seed: SeedState, real: jax.Array, rate: jax.Array) -> SeedState:
        """Restarts a seed; padding does not train.

        Args:
          seed: the seed's state.
          real: bool[] whether this is a seed and not padding.
          rate: float32[] factor of the learning rate from the start.
        """
        zero = jnp.zeros((), jnp.int32)
        progress = seed.progress._replace(
            step=zero,
            lr_scale=rate,
            best_score=jnp.full((), -jnp.inf, jnp.float32),
            patience_score=jnp.full((), -jnp.inf, jnp.float32),
            bad_epochs=zero,
            done=~real | seed.progress.failed,
        )
        return seed._replace(
            opt_state=seed.opt_state._replace(
                inner=inner.init(seed.params),
                reached=jax.tree.map(jnp.zeros_like, seed.opt_state.reached),
            ),
            best=(seed.params, seed.model_state) if plan.select == "best" else (),
            progress=progress,
        )

    return begin


def make_end(strategy: Strategy, plan: Plan) -> Callable[..., SeedState]:
    """Builds the end of a task."""

    def end(seed: SeedState, data: TaskData, task, key) -> SeedState:
        """Loads the selected weights and lets the strategy consolidate."""
        if plan.select == "best":
            params, model_state = seed.best
            seed = seed._replace(params=params, model_state=model_state)

        def consolidate(seed: SeedState) -> SeedState:
            made = strategy.after_task(
                seed.params,
                seed.strategy_state,
                data=data,
                model_state=seed.model_state,
                task=task,
                key=key,
            )
            require_pair("after_task", made, seed.params, seed.strategy_state)
            params, state = made
            opt_state = seed.opt_state._replace(strategy=state)
            return seed._replace(params=params, opt_state=opt_state)

        failed = seed.progress.failed
        return jax.lax.cond(failed, lambda seed: seed, consolidate, seed)

    return end
