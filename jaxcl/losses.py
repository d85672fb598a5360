"""Loss transforms: functions from a loss to a loss, for any model and any loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.checks import require
from jaxcl.ops.divergences import soft_divergence, squared_error
from jaxcl.ops.matching import require_same_shapes
from jaxcl.ops.trees import tree_quadratic, wide
from jaxcl.types import PyTree

__all__ = [
    "distillation",
    "gate_sparsity",
    "quadratic",
    "quadratic_penalty",
    "soft_divergence",
    "squared_error",
]


def quadratic(
    params: PyTree,
    *,
    anchor: PyTree,
    importance: PyTree,
    strength: float | jax.Array,
    offset: float | jax.Array = 0.0,
) -> jax.Array:
    """A quadratic pull of parameters towards an anchor.

    strength/2 · (Σᵢ importanceᵢ (θᵢ − anchorᵢ)² + offset)

    Args:
      params: tree of arrays, θ.
      anchor: tree of the same shapes, θ*.
      importance: tree of the same shapes, non-negative.
      strength: λ ≥ 0. May be traced.
      offset: constant part of the quadratic; changes the value, not the gradient.

    Returns:
      A scalar, float32 at least.

    Raises:
      ValueError: `strength` is a negative number; `anchor` or `importance` do not fit
        the parameters.

    Example:
      >>> import jax.numpy as jnp, jaxcl
      >>> float(jaxcl.losses.quadratic(jnp.ones(2), anchor=jnp.zeros(2),
      ...                              importance=jnp.array([1.0, 4.0]), strength=2.0))
      5.0

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks,
    2017, https://arxiv.org/abs/1612.00796, eq. 3.
    """
    require(strength >= 0, f"strength must be at least 0, got {strength}")
    require_same_shapes("anchor", anchor, "the parameters", params)
    require_same_shapes("importance", importance, "the parameters", params)
    difference = jax.tree.map(lambda p, a: wide(p) - a, params, anchor)
    return 0.5 * strength * (tree_quadratic(importance, difference) + offset)


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
      importance, strength, offset: see `quadratic`.
      of: the part of ``params`` that is pulled.
      has_aux: as in `jax.grad`.

    Returns:
      A loss of the same signature.

    Raises:
      ValueError: `strength` is a negative number; when called, `anchor` or `importance`
        do not fit the parameters.

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
    require(strength >= 0, f"strength must be at least 0, got {strength}")
    given: dict[str, Any] = {"anchor": anchor, "importance": importance}
    given |= {"strength": strength, "offset": offset}

    def penalised(params: Any, *args: Any, **kwargs: Any) -> Any:
        value = loss_fn(params, *args, **kwargs)
        loss, aux = value if has_aux else (value, None)
        loss = loss + quadratic(of(params), **given)
        return (loss, aux) if has_aux else loss

    return penalised


def distillation(
    loss_fn: Callable[..., tuple[jax.Array, Any]],
    *,
    target: PyTree,
    divergence: Callable[[Any, Any], jax.Array],
    strength: float | jax.Array,
    of: Callable[[Any], Any] = lambda aux: aux.logits,
) -> Callable[..., tuple[jax.Array, Any]]:
    """Adds to a loss the divergence of a network's outputs from given ones.

    L'(θ) = L(θ) + strength · D(z(θ), target)

    Args:
      loss_fn: ``(params, *args) -> (scalar, aux)``; the outputs are read from ``aux``,
        so that one forward pass serves both terms.
      target: another network's outputs on the same inputs; no gradient flows to it.
      divergence: D, ``(outputs, target) -> scalar``; see `soft_divergence` and
        `squared_error`.
      strength: ≥ 0. May be traced.
      of: z, from ``aux``; by default its ``logits``.

    Returns:
      A loss of the same signature.

    Raises:
      ValueError: `strength` is a negative number.

    Example:
      >>> import jax, jax.numpy as jnp, jaxcl
      >>> def loss(w, x):
      ...     logits = x @ w
      ...     return jnp.sum(logits), logits
      >>> teacher, student, x = jnp.eye(2), 3 * jnp.eye(2), jnp.eye(2)
      >>> distilled = jaxcl.losses.distillation(
      ...     loss, target=x @ teacher, strength=0.5, of=lambda logits: logits,
      ...     divergence=jaxcl.losses.squared_error)
      >>> float(distilled(student, x)[0])  # 6 + 0.5 · (4 + 0 + 0 + 4)/4
      7.0

    Source: Hinton et al., Distilling the knowledge in a neural network, 2015,
    https://arxiv.org/abs/1503.02531.
    """
    require(strength >= 0, f"strength must be at least 0, got {strength}")
    target = jax.lax.stop_gradient(target)

    def distilled(params: Any, *args: Any, **kwargs: Any) -> tuple[jax.Array, Any]:
        loss, aux = loss_fn(params, *args, **kwargs)
        return loss + strength * divergence(of(aux), target), aux

    return distilled


def gate_sparsity(
    loss_fn: Callable[..., Any],
    *,
    gates: Callable[..., PyTree],
    used: PyTree,
    strength: float | jax.Array,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Adds a cost for opening the gate of a unit that no earlier task has opened.

    L' = L + strength · Σ_l Σ_i a_li (1 − u_li) / Σ_l Σ_i (1 − u_li)

    Units that earlier tasks use are free to share. All layers count together: the term
    is the share of the free units that are taken, times ``strength``; 0 if none is
    free.

    Args:
      loss_fn: ``(*args) -> scalar``, or ``(scalar, aux)`` with `has_aux`.
      gates: ``(*args) -> tree`` of float[C], the gates a in [0, 1] of each layer.
      used: tree of the same shapes, the cumulative gates u in [0, 1].
      strength: λ ≥ 0. May be traced.
      has_aux: as in `jax.grad`.

    Returns:
      A loss of the same signature.

    Raises:
      ValueError: `strength` is a negative number; `used` is outside [0, 1] or, when
        called, does not fit the gates.

    Example:
      >>> import jax.numpy as jnp, jaxcl
      >>> loss = jaxcl.losses.gate_sparsity(
      ...     lambda e: jnp.zeros(()), strength=2.0, used=[jnp.array([1.0, 0.0, 0.0])],
      ...     gates=lambda e: [jaxcl.ops.gates.gate(e, 1.0)])
      >>> float(loss(jnp.zeros(3)))
      1.0

    Source: Serrà et al., Overcoming catastrophic forgetting with hard attention to the
    task, 2018, https://arxiv.org/abs/1801.01423, eq. 5.
    """
    require(strength >= 0, f"strength must be at least 0, got {strength}")
    for u in jax.tree.leaves(used):
        low, high = jnp.min(u, initial=0), jnp.max(u, initial=0)
        inside = (low >= 0) & (high <= 1)
        require(inside, f"used must lie in [0, 1], got {low} to {high}")

    def penalised(*args: Any, **kwargs: Any) -> Any:
        value = loss_fn(*args, **kwargs)
        loss, aux = value if has_aux else (value, None)
        free = jax.tree.map(lambda u: 1 - u, used)
        opened = gates(*args, **kwargs)
        require_same_shapes("used", used, "the gates", opened)
        taken = jax.tree.map(jnp.vdot, opened, free)
        # In a full network both sums are 0, and the term has to be too.
        room = jnp.maximum(_total(jax.tree.map(jnp.sum, free)), 1e-12)
        loss = loss + strength * _total(taken) / room
        return (loss, aux) if has_aux else loss

    return penalised


def _total(tree: PyTree) -> jax.Array:
    return reduce(jnp.add, jax.tree.leaves(tree), jnp.zeros(()))
