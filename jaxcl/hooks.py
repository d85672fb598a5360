"""Turns a strategy into a plain optax transformation.

For your own training loop; this project's loop uses the same functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxcl.checks import require
from jaxcl.contract import Strategy
from jaxcl.heads import (
    hold_still,
    outputs_of,
    require_heads,
    shares_all_outputs,
    with_gradient,
)
from jaxcl.kinds import require_arrays, require_instance, require_pair
from jaxcl.linearity import warn_unless_linear
from jaxcl.ops.trees import leaf_names, tree_where
from jaxcl.types import Context, Output, Params, PyTree, Setup, State


class OptState(NamedTuple):
    """State of `transform_optimizer`'s transformation."""

    inner: PyTree  # the optimizer's
    strategy: State
    # bool[K], the outputs that gradients of the coming update have reached, where an
    # optimizer makes one of several; else ().
    reached: PyTree = ()


def init_params(strategy: Strategy, key: jax.Array, net: PyTree) -> Params:
    """The parameters that training starts from: the network's and the strategy's own.

    Args:
      strategy: any `Strategy`.
      key: a typed key, for what the strategy draws (HAT's embeddings).
      net: the network's parameters.

    Returns:
      A `Params` of ``net`` itself and the strategy's ``aux``.

    Raises:
      ValueError: a leaf of ``net`` cannot be trained; the message names it.
    """
    require_instance("strategy", strategy, Strategy)
    for path, leaf in jax.tree_util.tree_leaves_with_path(net):
        kind = getattr(leaf, "dtype", None)
        if kind is None or not jnp.issubdtype(kind, jnp.inexact):
            name = "/".join(leaf_names(path))
            what = type(leaf).__name__ if kind is None else kind
            raise ValueError(
                f"parameter {name!r} is of {what}, which cannot be trained: give the "
                "parameters alone (jaxcl.nn.equinox.split, jaxcl.nn.nnx.split)"
            )
    return Params(net, strategy.init_aux(key, net))


def transform_optimizer(
    strategy: Strategy, optimizer: optax.GradientTransformation, setup: Setup
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optax optimizer in a strategy's gradient and update hooks.

    ``update`` computes g' = strategy.grads(g) and u = optimizer(g'), sets u to 0 for
    the outputs of the classifier that are not in play, and returns strategy.updates(u):
    the strategy decides last, after the optimizer's momentum and weight decay. In each
    step, these outputs are in play:

    - the outputs in the loss of the batch's own examples,
    - those where g or g' is not zero,
    - those that the strategy names, ``strategy.in_play``: a saturated replayed example,
      or a reference gradient that did not conflict, reaches outputs without a trace in
      g'.

    If all tasks share all outputs, none is held still. Where the optimizer makes one
    update of several steps' gradients (`optax.MultiSteps`), the outputs in play in any
    of these steps are.

    Args:
      strategy: any `Strategy`.
      optimizer: an optax transformation over `Params`.
      setup: the run's `Setup`; its ``heads`` name the classifier. The K outputs are the
        last axis of its leaves, or the first one if the layer's axis or ``setup.axis``
        is 0.

    Returns:
      An optax transformation whose state is an `OptState` and whose
      ``update(grads, state, params, ctx=..., out=...)`` takes the step's `Context` and
      `Output`; further keywords are passed to ``optimizer``.

    Raises:
      ValueError: on init, a head matches no parameter, or the optimizer gathers
        gradients over several steps (`optax.MultiSteps`, `optax.apply_every`) and the
        strategy does not allow that; on update, no parameter that ``setup.heads`` names
        has K outputs.

    Warns if the strategy needs an optimizer whose updates stay in the subspace of its
    gradients and this optimizer's do not. A loop of your own may add to the loss or to
    the batch: the strategy's form for beside others is taken (`Strategy.beside`).

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxcl
      >>> from jaxcl.strategies import frozen
      >>> setup = jaxcl.setup_for(lambda w, x: x @ w["head"]["kernel"],
      ...                         jnp.zeros([2, 3]), num_outputs=2, num_tasks=2,
      ...                         heads=(("head",),))
      >>> method = frozen(setup)
      >>> net = {"head": {"kernel": jnp.zeros([3, 2])}}
      >>> params = jaxcl.init_params(method, jax.random.key(0), net)
      >>> tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
      >>> loss = jaxcl.transform_loss(method, setup)
      >>> opt_state = tx.init(params)
      >>> ctx = jaxcl.context(jnp.ones([2, 3]), jnp.array([0, 1]), task=1)
      >>> grad = jax.grad(loss, has_aux=True)
      >>> grads, out = grad(params, opt_state.strategy, ctx)
      >>> updates, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
      >>> params = optax.apply_updates(params, updates)
    """
    warn_unless_linear(strategy, optimizer, setup)
    return hook_in(strategy.beside or strategy, optimizer, setup)


def hook_in(
    strategy: Strategy, optimizer: optax.GradientTransformation, setup: Setup
) -> optax.GradientTransformationExtraArgs:
    """`transform_optimizer` of this very strategy, without testing the optimizer."""
    inner = optax.with_extra_args_support(optimizer)
    holds = not shares_all_outputs(setup)

    def init(params: Params) -> OptState:
        require_heads(setup.heads, params.net)
        state = inner.init(params)
        several = _gathers(state)
        require(not (several and strategy.needs_every_step), _MICRO_BATCHES)
        reached = jnp.zeros(setup.logit_mask.shape[1:], bool)
        own = strategy.init(params)
        require_arrays("init", own)
        return OptState(state, own, reached if several and holds else ())

    def update(
        grads, opt_state, params=None, *, ctx: Context, out: Output, **extra: Any
    ):
        old = opt_state.strategy
        made = strategy.grads(grads, old, params, ctx=ctx, out=out)
        require_pair("grads", made, grads, old)
        new, state = made
        raw, inner_state = inner.update(new, opt_state.inner, params, **extra)
        updates, reached = cast(Params, raw), opt_state.reached
        if holds:
            in_play = (
                outputs_of(setup, ctx.batch, ctx.task)
                | with_gradient(setup, grads.net, new.net)
                | strategy.in_play(old, ctx=ctx)
            )
            if len(reached):
                in_play |= reached
                moves = [(u != 0).any() for u in jax.tree.leaves(updates)]
                reached = in_play & ~jnp.stack(moves).any()
            updates = updates._replace(net=hold_still(setup, updates.net, in_play))
        made = strategy.updates(updates, state, params, grads=new, ctx=ctx, out=out)
        require_pair("updates", made, updates, state)
        updates, state = made
        for taken in _taken(inner_state):  # a step that is not taken is not kept
            state = tree_where(taken, state, old)
        return updates, OptState(inner_state, state, reached)

    return optax.GradientTransformationExtraArgs(init, update)


def _taken(state: PyTree) -> list[jax.Array]:
    """Whether each guard in an optimizer took this step, by its state.

    `optax.apply_if_finite` is one, `optax.MultiSteps` with a ``should_skip_update_fn``
    another. An apply_if_finite that acts on several steps' gradients together says
    nothing of a single step.
    """
    guards = optax.ApplyIfFiniteState | optax.MultiStepsState
    ends = guards | optax.ApplyEvery
    found = []
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, ends)):
        if isinstance(node, optax.ApplyIfFiniteState):
            found.append(node.last_finite)
        elif isinstance(node, optax.MultiStepsState):
            skipped: Any = node.skip_state  # () without such a function
            if "should_skip" in skipped:
                found.append(~skipped["should_skip"])
    return found


def _gathers(state: PyTree) -> bool:
    """Whether an optimizer, by its state, makes one update of several gradients."""

    def gathers(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState | optax.ApplyEvery)

    return any(map(gathers, jax.tree.leaves(state, is_leaf=gathers)))


_MICRO_BATCHES = (
    "this strategy relates each update to the gradient of its own step; "
    "optax.MultiSteps makes one of several gradients, as apply_every does: use larger "
    "batches"
)
