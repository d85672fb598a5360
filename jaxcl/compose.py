"""Strategies put together, and turned into plain optax and plain losses."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcl.heads import hold_still, outputs_of, shares_all_outputs, with_gradient
from jaxcl.types import (
    ApplyFn,
    Context,
    LossFn,
    Output,
    Params,
    Setup,
    State,
    Strategy,
    TaskLoss,
)


def chain(*members: Strategy) -> Strategy:
    """Composes strategies into one.

    ``forward`` and ``loss`` nest, the first member innermost; gradients, updates, model
    state and parameters thread through the members in order. State, aux and cache are
    tuples with an entry a member, and each member sees a key of its own (member i gets
    ``fold_in(key, i)``). What they add to the validation loss is summed. Reports are
    merged; a name that two members report is told apart by the member's number, as in
    "0:hidden_0".

    Args:
      *members: strategies, at least one.

    Returns:
      The composed `Strategy`.

    Raises:
      ValueError: no member given.
    """
    if not members:
        raise ValueError("chain() needs at least one strategy, got none")

    def own(ctx: Context, i: int) -> Context:
        # `prepare` ran before there was a context; a context made outside this
        # project's loop may carry no cache at all.
        cache = ctx.cache[i] if ctx.cache != () else ()
        return ctx._replace(key=jax.random.fold_in(ctx.key, i), cache=cache)

    def init(key, net):
        pairs = [m.init(jax.random.fold_in(key, i), net) for i, m in enumerate(members)]
        return tuple(aux for aux, _ in pairs), tuple(state for _, state in pairs)

    def prepare(state, data):
        return tuple(m.prepare(s, data) for m, s in zip(members, state, strict=True))

    def forward(state, aux, apply_fn, ctx):
        for i, m in enumerate(members):
            apply_fn = m.forward(state[i], aux[i], apply_fn, own(ctx, i))
        return apply_fn

    def loss(state, loss_fn):
        for i, m in enumerate(members):
            loss_fn = _lift_loss(m, i, state[i], loss_fn, own)
        return loss_fn

    def thread(call, value, state):
        states = []
        for i, m in enumerate(members):
            value, s = call(m, i, state[i], value)
            states.append(s)
        return value, tuple(states)

    def at(tree: Params, i: int) -> Params:
        return Params(tree.net, tree.aux[i])

    def put(tree: Params, i: int, new: Params) -> Params:
        aux = tuple(new.aux if j == i else a for j, a in enumerate(tree.aux))
        return Params(new.net, aux)

    def grads(state, g, params, ctx, out):
        def call(m, i, s, g):
            new, s = m.grads(s, at(g, i), at(params, i), own(ctx, i), out)
            return put(g, i, new), s

        return thread(call, g, state)

    def updates(state, u, g, params, ctx, out):
        def call(m, i, s, u):
            new, s = m.updates(s, at(u, i), at(g, i), at(params, i), own(ctx, i), out)
            return put(u, i, new), s

        return thread(call, u, state)

    def in_play(state, ctx):
        parts = [m.in_play(state[i], own(ctx, i)) for i, m in enumerate(members)]
        return reduce(jnp.logical_or, parts)

    def model_state(state, old, new, ctx):
        for i, m in enumerate(members):
            new = m.model_state(state[i], old, new, own(ctx, i))
        return new

    def validation(state, params, ctx):
        return sum(
            m.validation(state[i], at(params, i), own(ctx, i))
            for i, m in enumerate(members)
        )

    def after_task(state, params, ms, ctx, data):
        def call(m, i, s, p):
            new, s = m.after_task(s, at(p, i), ms, own(ctx, i), data)
            return put(p, i, new), s

        return thread(call, params, state)

    def report(state):
        parts = [m.report(s) for m, s in zip(members, state, strict=True)]
        count = Counter(name for part in parts for name in part)
        return {
            name if count[name] == 1 else f"{i}:{name}": value
            for i, part in enumerate(parts)
            for name, value in part.items()
        }

    def check(optimizer):
        for m in members:
            m.check(optimizer)

    return Strategy(
        init,
        prepare,
        forward,
        loss,
        grads,
        updates,
        in_play,
        model_state,
        validation,
        after_task,
        report,
        check,
    )


def _lift_loss(member: Strategy, i: int, state: State, inner: LossFn, own) -> LossFn:
    """Lets a member of a chain see its own aux and key; the loss below sees all."""

    def loss_fn(params: Params, ctx: Context):
        def below(p: Params, c: Context):
            # The member may have swapped the batch (replay) or moved its own aux; the
            # others' aux, cache and keys stay those of the chain.
            aux = tuple(p.aux if j == i else a for j, a in enumerate(params.aux))
            return inner(Params(p.net, aux), c._replace(key=ctx.key, cache=ctx.cache))

        own_ctx = own(ctx, i)
        return member.loss(state, below)(Params(params.net, params.aux[i]), own_ctx)

    return loss_fn


def transform_loss(strategy: Strategy, task_loss: TaskLoss, apply_fn: ApplyFn):
    """A strategy's loss as a plain function to differentiate.

    With f the model, f' = ``strategy.forward`` of it and ℓ the task's loss, the result
    is ``strategy.loss`` of ``(params, ctx) ↦ ℓ(f'(params.net, ctx.batch.x))``.

    Args:
      strategy: any `Strategy`.
      task_loss: ``(logits[B, K], batch, task) -> scalar``.
      apply_fn: ``(net, model_state, x, task, key, train) -> Output``.

    Returns:
      ``(params, strategy_state, ctx) -> (scalar, Output)``, for
      ``jax.value_and_grad(..., has_aux=True)``.

    Example: one EWC step in a loop of one's own is in `jaxcl.transform_optimizer`.
    """

    def loss_fn(params: Params, state: State, ctx: Context):
        def bare(p: Params, c: Context) -> tuple[jax.Array, Output]:
            f = strategy.forward(state, p.aux, apply_fn, c)
            out = f(p.net, c.model_state, c.batch.x, c.batch.task, c.key, True)
            return task_loss(out.logits, c.batch, c.task), out

        return strategy.loss(state, bare)(params, ctx)

    return loss_fn


def transform_optimizer(
    strategy: Strategy,
    optimizer: optax.GradientTransformation,
    state: State,
    setup: Setup,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optax optimizer in a strategy's gradient and update hooks.

    ``update`` computes g' = strategy.grads(g) and u = optimizer(g'), sets u to 0 for
    the outputs of the classifier that are not in play, and returns strategy.updates(u):
    the strategy has the last word, whatever momentum or weight decay the optimizer
    adds. In play are, in each step by itself,

    - the outputs that the loss of the batch's own examples is over,
    - those that g or g' is not zero at,
    - those that the strategy names, ``strategy.in_play``: a saturated replayed example,
      or a reference gradient that did not conflict, reaches outputs without a trace in
      g'.

    Nothing is held where all tasks share all outputs.

    Args:
      strategy: any `Strategy`.
      optimizer: an optax transformation over `Params`.
      state: the strategy's state that ``init`` starts from, from ``strategy.init``.
      setup: the run's `Setup`; its ``heads`` name the classifier, whose leaves have the
        K outputs as their last axis.

    Returns:
      An optax transformation whose state is ``(inner_state, strategy_state)`` and whose
      ``update(grads, state, params, ctx=..., out=...)`` takes the step's `Context` and
      `Output`; further keywords go on to ``optimizer``.

    Raises:
      ValueError: on update, no parameter that ``setup.heads`` names has K outputs.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxcl
      >>> from jaxcl.strategies import frozen
      >>> setup = jaxcl.setup_for(lambda w, x: x @ w["head"]["kernel"],
      ...                         jnp.zeros([2, 3]), num_outputs=2, num_tasks=2,
      ...                         heads=(("head",),))
      >>> method = frozen(setup)
      >>> net = {"head": {"kernel": jnp.zeros([3, 2])}}
      >>> aux, state = method.init(jax.random.key(0), net)
      >>> params = jaxcl.Params(net, aux)
      >>> tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), state, setup)
      >>> loss = jaxcl.transform_loss(method, setup.task_loss, setup.apply_fn)
      >>> opt_state = tx.init(params)
      >>> ctx = jaxcl.context(jnp.ones([2, 3]), jnp.array([0, 1]), task=1)
      >>> grads, out = jax.grad(loss, has_aux=True)(params, opt_state[1], ctx)
      >>> updates, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
      >>> params = optax.apply_updates(params, updates)
    """
    inner = optax.with_extra_args_support(optimizer)
    holds = not shares_all_outputs(setup)

    def init(params: Params):
        return inner.init(params), state

    def update(
        grads, opt_state, params=None, *, ctx: Context, out: Output, **extra: Any
    ):
        inner_state, old = opt_state
        new, s = strategy.grads(old, grads, params, ctx, out)
        updates, inner_state = inner.update(new, inner_state, params, **extra)
        if holds:
            in_play = (
                outputs_of(setup, ctx.batch, ctx.task)
                | with_gradient(setup, grads.net, new.net)
                | strategy.in_play(old, ctx)
            )
            updates = updates._replace(net=hold_still(setup, updates.net, in_play))
        updates, s = strategy.updates(s, updates, new, params, ctx, out)
        return updates, (inner_state, s)

    return optax.GradientTransformationExtraArgs(init, update)
