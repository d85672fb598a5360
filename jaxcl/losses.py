"""Loss transforms: functions from a loss to a loss, for any model and any loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.linalg import tree_quadratic
from jaxcl.types import PyTree


def quadratic_penalty(
    loss_fn: Callable[..., Any],
    *,
    anchor: PyTree,
    importance: PyTree,
    strength: float | jax.Array,
    offset: float | jax.Array = 0.0,
    of: Callable[[Any], PyTree] = lambda params: params,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Adds a quadratic pull towards an anchor to a loss.

    L'(θ) = L(θ) + strength/2 · (Σᵢ importanceᵢ (θᵢ − anchorᵢ)² + offset)

    Args:
      loss_fn: ``(params, *args) -> scalar``, or ``(scalar, aux)`` with `has_aux`.
      anchor: tree of arrays, θ*.
      importance: tree of the same shapes, non-negative.
      strength: λ ≥ 0. May be traced.
      offset: constant part of the quadratic; changes the value, not the gradient.
      of: the part of ``params`` that is pulled.
      has_aux: as in `jax.grad`.

    Returns:
      A loss of the same signature.

    Raises:
      ValueError: `strength` is a negative number.

    Example:
      >>> import jax, jax.numpy as jnp, jaxcl
      >>> loss = lambda w, x: jnp.sum(w * x)
      >>> pulled = jaxcl.losses.quadratic_penalty(
      ...     loss, anchor=jnp.zeros(2), importance=jnp.array([1.0, 4.0]), strength=2.0)
      >>> float(pulled(jnp.ones(2), jnp.zeros(2)))
      5.0

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks,
    2017, https://arxiv.org/abs/1612.00796, eq. 3.
    """
    if isinstance(strength, (int, float)) and strength < 0:
        raise ValueError(f"strength must be at least 0, got {strength}")

    def penalised(params: Any, *args: Any, **kwargs: Any) -> Any:
        value = loss_fn(params, *args, **kwargs)
        loss, aux = value if has_aux else (value, None)
        difference = jax.tree.map(lambda p, a: p - a, of(params), anchor)
        pull = tree_quadratic(importance, difference) + offset
        loss = loss + 0.5 * strength * pull
        return (loss, aux) if has_aux else loss

    return penalised


def gate_sparsity(
    loss_fn: Callable[..., Any],
    *,
    gates: Callable[..., PyTree],
    used: PyTree,
    strength: float | jax.Array,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Makes it cost to open the gate of a unit that no earlier task has opened.

    L' = L + strength · Σ_l Σ_i a_li (1 − u_li) / Σ_l Σ_i (1 − u_li)

    Units that earlier tasks use are free to share. All layers count jointly: the term
    is the share of the free units taken, at most ``strength``; 0 if none is free.

    Args:
      loss_fn: ``(*args) -> scalar``, or ``(scalar, aux)`` with `has_aux`.
      gates: ``(*args) -> tree`` of float[C], the gates a in [0, 1] of each layer.
      used: tree of the same shapes, the cumulative gates u in [0, 1].
      strength: λ ≥ 0. May be traced.
      has_aux: as in `jax.grad`.

    Returns:
      A loss of the same signature.

    Raises:
      ValueError: `strength` is a negative number.

    Example:
      >>> import jax.numpy as jnp, jaxcl
      >>> loss = jaxcl.losses.gate_sparsity(
      ...     lambda e: jnp.zeros(()), strength=2.0, used=[jnp.array([1.0, 0.0, 0.0])],
      ...     gates=lambda e: [jaxcl.gates.gate(e, 1.0)])
      >>> float(loss(jnp.zeros(3)))
      1.0

    Source: Serrà et al., Overcoming catastrophic forgetting with hard attention to the
    task, 2018, https://arxiv.org/abs/1801.01423, eq. 5.
    """
    if isinstance(strength, (int, float)) and not strength >= 0:
        raise ValueError(f"strength must be at least 0, got {strength}")

    def penalised(*args: Any, **kwargs: Any) -> Any:
        value = loss_fn(*args, **kwargs)
        loss, aux = value if has_aux else (value, None)
        free = jax.tree.map(lambda u: 1 - u, used)
        taken = jax.tree.map(jnp.vdot, gates(*args, **kwargs), free)
        # In a full network both sums are 0, and the term has to be too.
        room = jnp.maximum(_total(jax.tree.map(jnp.sum, free)), 1e-12)
        loss = loss + strength * _total(taken) / room
        return (loss, aux) if has_aux else loss

    return penalised


def _total(tree: PyTree) -> jax.Array:
    return reduce(jnp.add, jax.tree.leaves(tree), jnp.zeros(()))
