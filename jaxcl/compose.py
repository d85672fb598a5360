"""Several strategies put together into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp

from jaxcl.contract import Strategy, no_penalty
from jaxcl.kinds import require_instance, require_loss
from jaxcl.types import (
    ApplyFn,
    Batch,
    Context,
    LossFn,
    Output,
    Params,
    PyTree,
    State,
    TaskData,
)


def chain(*members: Strategy) -> Strategy:
    """Composes strategies into one.

    ``forward`` and ``loss`` nest, the first member innermost; gradients, updates, model
    state and parameters thread through the members in order. State, aux and cache are
    tuples with an entry per member, and each member sees a key of its own (member i
    gets ``fold_in(key, i)``). Penalties are summed. Reports are merged; if two members
    report the same layer of a quantity, the layer's name begins with the member's
    number, as in ``{"taken": {"0:hidden_0": …, "1:hidden_0": …}}``. At a task's end
    ``data.forward`` wraps the network for a member as the members before it, already
    consolidated, do: with HAT's gates, or the first task's statistics. Where a member
    has another form for beside others (`Strategy.beside`), that form is taken.

    Args:
      *members: strategies, at least one.

    Returns:
      The composed `Strategy`.

    Raises:
      ValueError: no member given, or one that is no `Strategy`.
    """
    if not members:
        raise ValueError("chain() needs at least one strategy, got none")
    for member in members:
        require_instance("every member of a chain", member, Strategy)
    if len(members) > 1:
        members = tuple(m.beside or m for m in members)

    def own(ctx: Context, i: int) -> Context:
        # `before_task` ran before there was a context; a context made outside this
        # project's loop may carry no cache at all.
        cache = ctx.cache[i] if ctx.cache != () else ()
        return ctx._replace(key=jax.random.fold_in(ctx.key, i), cache=cache)

    def at(tree: Params, i: int) -> Params:
        return Params(tree.net, tree.aux[i])

    def put(tree: Params, i: int, new: Params) -> Params:
        aux = tuple(new.aux if j == i else a for j, a in enumerate(tree.aux))
        return Params(new.net, aux)

    def thread(call, tree: Params, state):
        """Passes a tree through the members, each seeing and changing its own aux."""
        states = []
        for i, m in enumerate(members):
            new, s = call(m, i, at(tree, i), state[i])
            tree = put(tree, i, new)
            states.append(s)
        return tree, tuple(states)

    def init_aux(key, net):
        return tuple(
            m.init_aux(jax.random.fold_in(key, i), net) for i, m in enumerate(members)
        )

    def init(params):
        return tuple(m.init(at(params, i)) for i, m in enumerate(members))

    def before_task(params, state, *, data, model_state, task):
        given = {"data": data, "model_state": model_state, "task": task}
        return tuple(
            m.before_task(at(params, i), state[i], **given)
            for i, m in enumerate(members)
        )

    def forward(apply_fn, state, aux, *, ctx):
        for i, m in enumerate(members):
            apply_fn = m.forward(apply_fn, state[i], aux[i], ctx=own(ctx, i))
        return apply_fn

    def loss(loss_fn, state):
        for i, m in enumerate(members):
            loss_fn = _lift_loss(m, i, state[i], loss_fn, own)
        return loss_fn

    def grads(grads, state, params, *, ctx, out):
        def call(m, i, g, s):
            return m.grads(g, s, at(params, i), ctx=own(ctx, i), out=out)

        return thread(call, grads, state)

    def updates(updates, state, params, *, grads, ctx, out):
        def call(m, i, u, s):
            mine, g = own(ctx, i), at(grads, i)
            return m.updates(u, s, at(params, i), grads=g, ctx=mine, out=out)

        return thread(call, updates, state)

    def in_play(state, *, ctx):
        parts = [m.in_play(state[i], ctx=own(ctx, i)) for i, m in enumerate(members)]
        return reduce(jnp.logical_or, parts)

    def model_state(new, state, *, old, ctx):
        for i, m in enumerate(members):
            new = m.model_state(new, state[i], old=old, ctx=own(ctx, i))
        return new

    def added(terms):
        """The sum of the members' penalties; no penalty if none has one."""

        def term(params, state, *, task):
            own = zip(terms, state, strict=True)
            return sum(f(at(params, i), s, task=task) for i, (f, s) in enumerate(own))

        return no_penalty if all(f is no_penalty for f in terms) else term

    def after_task(params, state, *, data, model_state, task, key):
        ended: list[tuple[Strategy, State, PyTree]] = []

        def call(m, i, p, s):
            p, s = m.after_task(
                p,
                s,
                data=data._replace(forward=_evaluated(tuple(ended), data, task)),
                model_state=model_state,
                task=task,
                key=jax.random.fold_in(key, i),
            )
            ended.append((m, s, p.aux))
            return p, s

        return thread(call, params, state)

    def report(state):
        parts = [m.report(s) for m, s in zip(members, state, strict=True)]
        count = Counter((q, layer) for part in parts for q in part for layer in part[q])
        merged: dict[str, dict[str, jax.Array]] = {}
        for i, part in enumerate(parts):
            for quantity, layers in part.items():
                for layer, value in layers.items():
                    alone = count[quantity, layer] == 1
                    name = layer if alone else f"{i}:{layer}"
                    merged.setdefault(quantity, {})[name] = value
        return merged

    return Strategy(
        init_aux=init_aux,
        init=init,
        before_task=before_task,
        forward=forward,
        loss=loss,
        grads=grads,
        updates=updates,
        in_play=in_play,
        model_state=model_state,
        penalty=added([m.penalty for m in members]),
        validation=added([m.validation for m in members]),
        after_task=after_task,
        report=report,
        needs_linear=any(m.needs_linear for m in members),
        needs_every_step=any(m.needs_every_step for m in members),
        needs_every_task=any(m.needs_every_task for m in members),
        beside=_beside(*members),
    )


def _beside(first: Strategy, *others: Strategy) -> Strategy | None:
    """What a chain is in another chain: a single member may have another form there."""
    return None if others or first.beside is None else chain(first.beside)


def _lift_loss(member: Strategy, i: int, state: State, inner: LossFn, own) -> LossFn:
    """Lets a member of a chain see its own aux and key; the loss below sees all."""

    def loss_fn(params: Params, ctx: Context):
        def below(p: Params, c: Context):
            # The member may have swapped the batch (replay) or moved its own aux; the
            # others' aux, cache and keys stay those of the chain.
            aux = tuple(p.aux if j == i else a for j, a in enumerate(params.aux))
            return inner(Params(p.net, aux), c._replace(key=ctx.key, cache=ctx.cache))

        mine = Params(params.net, params.aux[i])
        found = member.loss(below, state)(mine, own(ctx, i))
        require_loss(found, Output)
        return found

    return loss_fn


def _evaluated(
    ended: tuple[tuple[Strategy, State, PyTree], ...], data: TaskData, task: jax.Array
) -> Callable[[ApplyFn], ApplyFn]:
    """Wraps the network as in evaluation, by the members that have ended the task.

    Args:
      ended: each member with its new state and aux, the innermost first.
      data: the task's; its ``forward`` is what an outer chain puts around the network.
      task: int32[] the task that has ended.
    """

    def wrap(apply_fn: ApplyFn) -> ApplyFn:
        bare = data.forward(apply_fn)

        def apply(net, model_state, x, example_task, key, train):
            none = jnp.zeros_like(example_task)
            batch = Batch(x, none, example_task, jnp.ones(len(x)), none - 1)
            start = jnp.zeros(())
            ctx = Context(
                task=task,
                step=jnp.zeros((), jnp.int32),
                epoch=jnp.full((), -1, jnp.int32),
                epoch_progress=start,
                epoch_fraction=start,
                task_progress=start,
                key=key,
                batch=batch,
                model_state=model_state,
                cache=(),
            )
            f = bare
            for member, state, aux in ended:
                f = member.forward(f, state, aux, ctx=ctx)
            return f(net, model_state, x, example_task, key, train)

        return apply

    return wrap
