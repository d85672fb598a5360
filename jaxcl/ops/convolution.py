"""Convolution as slices and matrix products, fast inside a scan."""

from __future__ import annotations

from functools import partial, reduce
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxcl.ops import strips
from jaxcl.ops.trees import summed_like
from jaxcl.schema import Count, OneOf, require
from jaxcl.types import Padding


def pads(
    size: int, window: int, stride: int, padding: Padding, axis: int = 0
) -> tuple[int, int]:
    """Zeros before and after one spatial axis, as XLA's SAME and VALID put them.

    If padding is given in numbers, those of ``axis`` are used: 0 rows, 1 columns.

    Raises:
      ValueError: a stride below 1; another name.
    """
    require("stride", stride, Count)
    if not isinstance(padding, str):
        return padding[axis]
    require("padding", padding, Annotated[str, OneOf(("SAME", "VALID"))])
    if padding == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def patches(
    x: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
) -> jax.Array:
    """Every window of an image as a row.

    Features are ordered (row, column, channel), as ``kernel.reshape(-1, n_out)`` of an
    HWIO kernel is, so that ``patches(x) @ kernel.reshape(-1, n_out)`` is the
    convolution. (`lax.conv_general_dilated_patches` orders them channel first.) It uses
    slices because XLA's CPU backend runs a `lax` convolution inside a loop 20 times
    slower.

    Args:
      x: [B, H, W, C].
      window: (kh, kw).
      strides: (sh, sw).
      padding: "VALID", "SAME" or ((top, bottom), (left, right)).

    Returns:
      [B, H', W', kh * kw * C], dtype of x.

    Raises:
      ValueError: the window is larger than the image.
    """
    (kh, kw), (sh, sw) = window, strides
    x = _padded(x, window, strides, padding)
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


def _padded(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """The image with zeros around it, so that the convolution is a VALID one."""
    top, bottom = pads(x.shape[1], window[0], strides[0], padding)
    left, right = pads(x.shape[2], window[1], strides[1], padding, 1)
    if top or bottom or left or right:
        x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    require_window(x, window)
    return x


def require_images(x: jax.Array) -> None:
    """Refuses what has not the axes of a batch of images."""
    if x.ndim != 4:
        raise ValueError(f"images must be [B, H, W, C], got {list(x.shape)}")


def require_window(x: jax.Array, window: tuple[int, int]) -> None:
    """Refuses a window larger than the image: the result would be empty."""
    require_images(x)
    (height, width), (kh, kw) = x.shape[1:3], window
    if height < kh or width < kw:
        raise ValueError(
            f"a window of {kh} × {kw} does not fit into the {height} × {width} that "
            "are left of the image: larger images, or a smaller network"
        )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
) -> jax.Array:
    """Convolution as matrix products, forward and backward.

    y = patches(x) K; dK = patches(x)ᵀ dy; with `strips` of several windows for patches
    where that is faster. dx is `input_gradient`'s, which the compiler leaves out if
    nothing needs it, as in a network's first layer.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C, O].
      strides: (sh, sw).
      padding: "VALID", "SAME" or ((top, bottom), (left, right)).

    Returns:
      [B, H', W', O].
    """
    require_images(x)
    q = _columns(x, kernel, strides, padding)
    if q > 1:
        image = _padded(x, kernel.shape[:2], strides, padding)
        return strips.convolve(image, kernel, strides, q)
    p = patches(x, kernel.shape[:2], strides, padding)
    return p @ kernel.reshape(-1, kernel.shape[-1])


def _columns(x, kernel, strides, padding) -> int:
    """The number of the result's columns that one row of the product gives."""
    kw, sw = kernel.shape[1], strides[1]
    width = x.shape[2] + sum(pads(x.shape[2], kw, sw, padding, 1))
    return strips.columns(kernel.shape, (width - kw) // sw + 1)


def _convolve_fwd(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding), (x, kernel)


def _convolve_bwd(strides, padding, residuals, dy):
    x, kernel = residuals
    q = _columns(x, kernel, strides, padding)
    if q > 1:
        image = _padded(x, kernel.shape[:2], strides, padding)
        dk = strips.kernel_gradient(image, dy, kernel.shape, strides, q)
    else:
        dk = kernel_gradient(patches(x, kernel.shape[:2], strides, padding), dy, kernel)
    dx = input_gradient(x, kernel, dy, strides, padding)
    dx, dk = dx.astype(x.dtype), dk.astype(kernel.dtype)
    return summed_like(dx, x), summed_like(dk, kernel)


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
    padding: Padding,
) -> jax.Array:
    """dx of `convolve`, with one matrix product for each offset in the window.

    dx[sh·p + i − top, sw·q + j − left] += dy[p, q] K[i, j]ᵀ for each offset (i, j) and
    each window (p, q). Patches of a padded dy would give the same result, but with more
    rows to multiply, most of them zeros under strides, and with kh·kw copies of dy.

    Args:
      x: [B, H, W, C] the convolution's input; only its shape is read.
      kernel: [kh, kw, C, O].
      dy: [B, H', W', O].
      strides: (sh, sw).
      padding: "VALID", "SAME" or ((top, bottom), (left, right)).

    Returns:
      [B, H, W, C], dtype of dy.
    """
    kh, kw = kernel.shape[:2]
    zero = jnp.zeros((), dy.dtype)

    def place(axis: int, offset: int, window: int) -> tuple[int, int, int]:
        """Zeros before, after and between the rows that the windows' offset reads."""
        stride, size = strides[axis - 1], x.shape[axis]
        low = offset - pads(size, window, stride, padding, axis - 1)[0]
        return low, size - low - (dy.shape[axis] - 1) * stride - 1, stride - 1

    parts = [
        jax.lax.pad(
            dy @ kernel[i, j].T,
            zero,
            ((0, 0, 0), place(1, i, kh), place(2, j, kw), (0, 0, 0)),
        )
        for i in range(kh)
        for j in range(kw)
    ]
    return reduce(jnp.add, parts)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + b for y [..., O] and b [O], with db = 1ᵀ dy as a matrix product.

    XLA's CPU backend adds rows one after the other; a product uses all SIMD lanes and
    rounds less.
    """
    return y + bias


def _add_bias_fwd(y, bias):
    none = y.reshape(-1)[:0], bias.reshape(-1)[:0]  # for their dtypes and devices
    return add_bias(y, bias), none


def _add_bias_bwd(none, dy):
    rows = dy.reshape(-1, dy.shape[-1])
    ones = jnp.ones(rows.shape[0], dy.dtype)
    db = jnp.matmul(ones, rows, precision=jax.lax.Precision.HIGHEST)
    dy, db = dy.astype(none[0].dtype), db.astype(none[1].dtype)
    return summed_like(dy, none[0]), summed_like(db, none[1])


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
