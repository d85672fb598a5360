"""Max pooling as a reduction and slices, fast inside a scan."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxcl.ops.convolution import require_window


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Non-overlapping max pooling of [B, H, W, C]; a ragged border is cut off.

    The backward pass gives dy to the largest element, or to the first of equal ones in
    row-major order, as PyTorch does. The position of this element is stored, not found
    again by comparison: a compiler that fuses earlier operations may compute x and the
    maximum twice, with different rounding, and then no element equals the maximum.

    Args:
      x: [B, H, W, C].
      size: side of the window.

    Returns:
      [B, H // size, W // size, C]; NaN where a window holds one.

    Raises:
      ValueError: ``size`` is not in [1, 11] (the position has to fit in an int8), or it
        is larger than the image.
    """
    if not 1 <= size <= 11:
        raise ValueError(f"size must be in [1, 11], got {size}")
    require_window(x, (size, size))
    return _max_pool_fwd(x, size)[0]


def _max_pool_fwd(x, size):
    height, width = (n // size * size for n in x.shape[1:3])
    b, c = len(x), x.shape[3]
    tiles = x[:, :height, :width]
    tiles = tiles.reshape(b, height // size, size, width // size, size, c)
    # As a reduction: XLA computes elementwise maxima anew for each reader, such as each
    # slice of the next convolution.
    best = tiles.max(axis=(2, 4))
    so_far = x[:, :height:size, :width:size]
    winner = jnp.zeros(best.shape, jnp.int8)
    for index in range(1, size * size):
        i, j = divmod(index, size)
        rival = x[:, i:height:size, j:width:size]
        winner = jnp.where(rival > so_far, jnp.int8(index), winner)
        so_far = jnp.maximum(so_far, rival)
    return best, (winner, x)


def _max_pool_bwd(size, residuals, dy):
    winner, x = residuals
    b, h, w, c = dy.shape
    index = jnp.arange(size * size, dtype=jnp.int8).reshape(size, 1, size, 1)
    won = winner[:, :, None, :, None] == index
    dx = jnp.where(won, dy[:, :, None, :, None], 0)
    dx = dx.reshape(b, h * size, w * size, c)
    ragged = [(0, n - m) for n, m in zip(x.shape, dx.shape, strict=True)]
    return (jnp.pad(dx, ragged),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
