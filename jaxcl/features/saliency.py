"""Which parts of an image determine a network's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxcl.checks import require
from jaxcl.features.matrix import array
from jaxcl.schema import Count, Range
from jaxcl.schema import require as require_kind

Score = Callable[[jax.Array], jax.Array]
"""``[B, ...] -> float[B]``: the logit of the class in question, or any feature."""


def input_gradient(score: Score, x: jax.Array) -> jax.Array:
    """How each pixel would change a score.

    ∂s_b / ∂x_b for each image b; an image's score must not depend on other images.

    Args:
      score: ``[B, ...] -> float[B]``.
      x: float[B, ...] images.

    Returns:
      float[B, ...], of x's shape; signed.

    Raises:
      ValueError: the score is not one number per image.

    Source: Simonyan et al., Deep inside convolutional networks, 2013,
    https://arxiv.org/abs/1312.6034, who show its absolute value.
    """
    x = array(x)

    def whole(v: jax.Array) -> jax.Array:
        each = score(v)
        require(
            jnp.shape(each) == x.shape[:1],
            f"score must give one number per image, float[{len(x)}], got "
            f"{list(jnp.shape(each))}",
        )
        return each.sum()

    return jax.grad(whole)(x)


def occlusion(
    score: Score, x: jax.Array, *, window: int, stride: int = 1, fill: float = 0.0
) -> jax.Array:
    """How much of a score is lost when a window of the image is covered.

    s(x) − s(x with rows [r, r + w) and columns [c, c + w) set to `fill`), r and c
    multiples of the stride.

    Args:
      score: ``[B, H, W, C] -> float[B]``.
      x: float[B, H, W, C] images.
      window: w, side of the square, from 1 to min(H, W).
      stride: distance between squares, at least 1.
      fill: the value of covered pixels.

    Returns:
      float[B, 1 + (H − w) // stride, 1 + (W − w) // stride].

    Raises:
      ValueError: images with another number of axes; a wrong window or stride.

    Source: Zeiler and Fergus, Visualizing and understanding convolutional networks,
    ECCV 2014, https://arxiv.org/abs/1311.2901, section 4.2.
    """
    x = array(x)
    if x.ndim != 4:
        raise ValueError(f"occlusion needs images [B, H, W, C], got shape {x.shape}")
    height, width = x.shape[1:3]
    require_kind("window", window, Annotated[int, Range(1, min(height, width))])
    require_kind("stride", stride, Count)
    require_kind("fill", fill, float)
    whole = score(x)
    rows = jnp.arange(0, height - window + 1, stride)
    columns = jnp.arange(0, width - window + 1, stride)

    def covers(start: jax.Array, size: int) -> jax.Array:
        at = jnp.arange(size)
        return (at >= start) & (at < start + window)

    def lost(corner: jax.Array) -> jax.Array:
        covered = covers(corner[0], height)[:, None] & covers(corner[1], width)
        return whole - score(jnp.where(covered[None, :, :, None], fill, x))

    corners = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    maps = jax.lax.map(lost, corners)
    return maps.T.reshape(x.shape[0], len(rows), len(columns))


def rank_correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """How far two maps agree in the order of importance: Spearman's ρ.

    The correlation between the ranks of the values of two maps; equal values get their
    mean rank.

    Args:
      a: float[..., H, W] maps, or with any two last axes.
      b: maps of a's shape.

    Returns:
      float32[...] in [−1, 1]; NaN if a map is constant or has a NaN.

    Raises:
      ValueError: maps of different shapes or of fewer than two axes.

    Source: Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018,
    https://arxiv.org/abs/1810.03292, who compare maps in this way.
    """
    a, b = array(a), array(b)
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(
            f"maps [..., H, W] of one shape are compared, got {a.shape} and {b.shape}"
        )

    def ranks(maps: jax.Array) -> jax.Array:
        flat = maps.reshape(-1, maps.shape[-2] * maps.shape[-1])

        def one(v: jax.Array) -> jax.Array:
            order = jnp.sort(v)
            low, high = (
                jnp.searchsorted(order, v, side=side) for side in ("left", "right")
            )
            return (low + high) / 2

        ranked = jax.vmap(one)(flat)
        centred = ranked - ranked.mean(1, keepdims=True)
        return centred.reshape(*maps.shape[:-2], flat.shape[1])

    x, y = ranks(a), ranks(b)
    known = ~(jnp.isnan(a) | jnp.isnan(b)).any((-2, -1))
    norm = jnp.sqrt(jnp.sum(x * x, -1) * jnp.sum(y * y, -1))
    return jnp.where((norm > 0) & known, jnp.sum(x * y, -1) / norm, jnp.nan)
