"""Loss transforms: functions from a loss to a loss, for any model and any loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

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
