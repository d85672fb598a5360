"""Convolution and pooling as slices and matrix products, fast inside a scan."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


def pads(size: int, window: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after one spatial axis, as XLA's SAME and VALID put them."""
    if padding == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def patches(
    x: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
) -> jax.Array:
    """Every window of an image as a row.

    Features are ordered (row, column, channel), as ``kernel.reshape(-1, n_out)`` of an
    HWIO kernel is, so that ``patches(x) @ kernel.reshape(-1, n_out)`` is the
    convolution. (`lax.conv_general_dilated_patches` orders them channel first.) Made of
    slices: XLA's CPU backend runs a `lax` convolution inside a loop 20 times slower.

    Args:
      x: [B, H, W, C].
      window: (kh, kw).
      strides: (sh, sw).
      padding: "VALID" or "SAME".

    Returns:
      [B, H', W', kh * kw * C], dtype of x.
    """
    (kh, kw), (sh, sw) = window, strides
    top, bottom = pads(x.shape[1], kh, sh, padding)
    left, right = pads(x.shape[2], kw, sw, padding)
    if top or bottom or left or right:
        x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (x.shape[1] - kh) // sh + 1
    width = (x.shape[2] - kw) // sw + 1
    return jnp.concatenate(
        [
            x[:, i : i + sh * (height - 1) + 1 : sh, j : j + sw * (width - 1) + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ],
        axis=-1,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
) -> jax.Array:
    """Convolution as one matrix product, forward and backward.

    y = patches(x) K;  dK = patches(x)ᵀ dy;  dx = patches(padded dy) flip(K)ᵀ.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C, O].
      strides: (sh, sw).
      padding: "VALID" or "SAME".

    Returns:
      [B, H', W', O].
    """
    p = patches(x, kernel.shape[:2], strides, padding)
    return p @ kernel.reshape(-1, kernel.shape[-1])


def _convolve_fwd(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding), (x, kernel)


def _convolve_bwd(strides, padding, residuals, dy):
    x, kernel = residuals
    dk = kernel_gradient(patches(x, kernel.shape[:2], strides, padding), dy, kernel)
    return input_gradient(x, kernel, dy, strides, padding), dk


convolve.defvjp(_convolve_fwd, _convolve_bwd)


def kernel_gradient(p: jax.Array, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """dK = Pᵀ dy for patches P [B, H', W', kh*kw*C] and dy [B, H', W', O]."""
    p = p.reshape(-1, p.shape[-1])
    return (p.T @ dy.reshape(-1, dy.shape[-1])).reshape(kernel.shape)


def input_gradient(
    x: jax.Array,
    kernel: jax.Array,
    dy: jax.Array,
    strides: tuple[int, int],
    padding: str,
) -> jax.Array:
    """dx of `convolve`: the dilated, padded dy convolved with the flipped kernel."""
    kh, kw, c, o = kernel.shape
    config = []
    for axis, k, s in ((1, kh, strides[0]), (2, kw, strides[1])):
        size = x.shape[axis]
        before = pads(size, k, s, padding)[0]
        dilated = (dy.shape[axis] - 1) * s + 1
        low = k - 1 - before
        config.append((low, size + k - 1 - low - dilated, s - 1))
    zero = jnp.zeros((), dy.dtype)
    dy = jax.lax.pad(dy, zero, ((0, 0, 0), *config, (0, 0, 0)))
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2).reshape(kh * kw * o, c)
    return patches(dy, (kh, kw)) @ flipped


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Non-overlapping max pooling of [B, H, W, C]; a ragged border is cut off."""
    b, h, w, c = x.shape
    h, w = h // size * size, w // size * size
    x = x[:, :h, :w].reshape(b, h // size, size, w // size, size, c)
    return x.max(axis=(2, 4))
