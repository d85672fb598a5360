"""The loss between two solutions: linear mode connectivity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxcl.features.matrix import array
from jaxcl.ops.matching import require_same_shapes
from jaxcl.schema import Range, require
from jaxcl.types import PyTree


def loss_along_line(
    loss: Callable[[PyTree], jax.Array], a: PyTree, b: PyTree, points: int = 11
) -> jax.Array:
    """The loss on the straight line from one solution to another.

    L((1 − α) a + α b) for α = 0, 1/(n−1), …, 1.

    Args:
      loss: ``params -> scalar``.
      a: parameters, a tree of floats.
      b: parameters of the same structure and shapes.
      points: n ≥ 2.

    Returns:
      float[n].

    Raises:
      ValueError: fewer than two points; trees that do not fit each other.

    Source: Mirzadeh et al., Linear mode connectivity in multitask and continual
    learning, ICLR 2021, https://arxiv.org/abs/2010.04495.
    """
    require("points", points, Annotated[int, Range(2)])
    require_same_shapes("b", b, "a", a)

    def at(alpha: jax.Array) -> jax.Array:
        def mix(v, w):  # in the weights' own dtype: the ends are a and b themselves
            return ((1 - alpha) * v + alpha * w).astype(jnp.result_type(v, w))

        return loss(jax.tree.map(mix, a, b))

    return jax.lax.map(at, jnp.linspace(0, 1, points))


def barrier(losses: jax.Array) -> jax.Array:
    """How far the loss on a line rises above the linear interpolation of its ends.

    max_α [L(α) − ((1 − α) L(0) + α L(1))], at least 0, its value at the ends.

    Args:
      losses: float[..., n], from `loss_along_line`.

    Returns:
      float[...].

    Raises:
      ValueError: fewer than two points.

    Source: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis,
    ICML 2020, https://arxiv.org/abs/1912.05671, who use the mean of the two ends
    instead of the line between them.
    """
    losses = jnp.atleast_1d(array(losses))
    if losses.shape[-1] < 2:
        raise ValueError(f"a barrier needs at least 2 points, got {losses.shape[-1]}")
    alpha = jnp.linspace(0, 1, losses.shape[-1])
    between = (1 - alpha) * losses[..., :1] + alpha * losses[..., -1:]
    return jnp.maximum(jnp.max(losses - between, axis=-1), 0)
