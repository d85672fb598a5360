"""Synaptic intelligence: holds weights whose movement lowered the loss.

Zenke et al., Continual learning through synaptic intelligence, ICML 2017,
https://arxiv.org/abs/1703.04200.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.contract import Strategy, strategy
from jaxcl.losses import quadratic
from jaxcl.ops.trees import anchored, wide, zeros_wide
from jaxcl.schema import NonNegative, Positive, checked
from jaxcl.types import PyTree, Setup


class SIState(NamedTuple):
    """The penalty c Σᵢ importanceᵢ (θᵢ − anchorᵢ)² and the path of the task so far."""

    importance: PyTree  # like net, Ω ≥ 0
    anchor: PyTree  # like net, θ at the end of the last task
    path: PyTree  # like net, ω since then


def consolidate(state: SIState, net: PyTree, damping: float) -> SIState:
    """Ω ← max(0, Ω + ω/((θ − anchor)² + ξ)), anchor ← θ, ω ← 0."""

    def grow(importance, path, new, old):
        return jnp.maximum(importance + path / ((new - old) ** 2 + damping), 0)

    importance = jax.tree.map(grow, state.importance, state.path, net, state.anchor)
    zeros = jax.tree.map(jnp.zeros_like, state.path)
    return SIState(importance, anchored(net), zeros)


@checked
def si(setup: Setup, *, strength: NonNegative, damping: Positive = 0.1) -> Strategy:
    """Penalises moving weights, by how much their moves lowered earlier tasks' loss.

    L = L_task + c Σᵢ Ωᵢ (θᵢ − θ*ᵢ)²
    at each step:      ωᵢ ← ωᵢ − gᵢ Δθᵢ     with g the gradient of L_task alone
    at a task's end:   Ωᵢ ← max(0, Ωᵢ + ωᵢ/((θᵢ − θ*ᵢ)² + ξ)),  θ* ← θ,  ω ← 0

    g is the given gradient minus that of the penalty, 2cΩ(θ − θ*), which is known in
    closed form; in a chain it also holds the loss terms of other members. Δθ is the
    update of the optimizer, whichever it is.

    Args:
      setup: not used; every factory takes it.
      strength: c ≥ 0; 0 is fine-tuning.
      damping: ξ > 0, keeps Ω bounded where a weight hardly moved.

    Returns:
      A `Strategy` with an `SIState`.

    Raises:
      ValueError: an argument out of range, with its value. Where an optimizer is given,
        one that makes an update from the gradients of several steps, such as
        `optax.MultiSteps`.

    Differs from van de Ven's code, which counts the whole loss's gradient in ω and lets
    Ω be negative: such a weight would be driven away. In a chain, put it behind the
    members that change gradients or updates; behind a projection (GPM, OWM), which
    takes a part of the pull too, ω holds the part that it took. If the best weights of
    a task are selected, not the last, ω still holds the whole path.
    """
    del setup

    def init(params):
        return SIState(
            zeros_wide(params.net), anchored(params.net), zeros_wide(params.net)
        )

    def penalty(params, state, *, task):
        return quadratic(
            params.net,
            anchor=state.anchor,
            importance=state.importance,
            strength=2 * strength,  # `quadratic` halves it
        )

    def updates(updates, state, params, *, grads, ctx, out):
        def extend(path, update, g, importance, theta, anchor):
            pull = 2 * strength * importance * (theta - anchor)
            return path - (wide(g) - pull) * wide(update)

        path = jax.tree.map(
            extend,
            state.path,
            updates.net,
            grads.net,
            state.importance,
            params.net,
            state.anchor,
        )
        return updates, state._replace(path=path)

    def after_task(params, state, *, data, model_state, task, key):
        return params, consolidate(state, params.net, damping)

    return strategy(
        init=init,
        penalty=penalty,
        updates=updates,
        after_task=after_task,
        needs_every_step=True,
    )
