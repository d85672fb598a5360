"""Depthwise convolution as sums of shifted products, fast inside a scan."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp

from jaxcl.ops.convolution import pads
from jaxcl.types import Padding


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: Padding = "SAME",
) -> jax.Array:
    """Each channel convolved with a window of its own.

    y[p, q, c] = Σ_ij x[s p + i − top, s q + j − left, c] K[i, j, c], forward a sum of
    slices of x, backward of slices of dy. (XLA's CPU backend takes five times as long
    for a grouped convolution inside a loop.)

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C].
      stride: s, of both axes.
      padding: "VALID", "SAME" or ((top, bottom), (left, right)).

    Returns:
      [B, H', W', C], dtype of x.
    """
    parts = _windows(x, kernel.shape[:2], stride, padding)
    return reduce(jnp.add, (v * k for v, k in zip(parts, _rows(kernel), strict=True)))


def _depthwise_fwd(x, kernel, stride, padding):
    return depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_bwd(stride, padding, residuals, dy):
    x, kernel = residuals
    kh, kw = kernel.shape[:2]
    parts = _windows(x, (kh, kw), stride, padding)
    dk = jnp.stack([_sum_over_rows(v * dy) for v in parts]).reshape(kernel.shape)
    # dx is the convolution of dy, zeros between its rows under a stride, with K turned
    # around.
    (top, _), (left, _) = (
        pads(x.shape[1 + i], k, stride, padding, i) for i, k in enumerate((kh, kw))
    )
    zero = jnp.zeros((), dy.dtype)
    spread = [(1 + (n - 1) * stride) for n in dy.shape[1:3]]
    before = kh - 1 - top, kw - 1 - left
    after = [
        x.shape[1 + i] + k - 1 - before[i] - spread[i] for i, k in enumerate((kh, kw))
    ]
    inside = stride - 1
    wide = jax.lax.pad(
        dy,
        zero,
        (
            (0, 0, 0),
            (before[0], after[0], inside),
            (before[1], after[1], inside),
            (0, 0, 0),
        ),
    )
    dx = depthwise(wide, kernel[::-1, ::-1], 1, "VALID")
    return dx, dk


depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _windows(x, window, stride, padding) -> list[jax.Array]:
    """For each offset of the window, row by row, what it meets: [B, H', W', C]."""
    kh, kw = window
    top, bottom = pads(x.shape[1], kh, stride, padding)
    left, right = pads(x.shape[2], kw, stride, padding, 1)
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    x = jax.lax.optimization_barrier(x)
    height = (x.shape[1] - kh) // stride * stride + 1
    width = (x.shape[2] - kw) // stride * stride + 1
    return [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(kh)
        for j in range(kw)
    ]


def _rows(kernel: jax.Array) -> list[jax.Array]:
    flat = kernel.reshape(-1, kernel.shape[-1])
    return [flat[i] for i in range(len(flat))]


def _sum_over_rows(v: jax.Array) -> jax.Array:
    """Σ over all axes but the last."""
    return v.sum((0, 1, 2))
