"""Convolution by products that give several neighbouring columns at once.

Where an image has few channels, copying its windows takes longer than multiplying
them. Here a row of the product is not one window but a strip: what q neighbouring
windows read, kh rows of (q − 1)·sw + kw columns. The kernel stands in its matrix q
times, each time sw columns further, with zeros around it. That multiplies some zeros,
but copies fewer and longer pieces, and the product is q times as wide.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

WIDE = 96
"""Columns of a product from which a core computes at full speed, about."""


def columns(kernel: tuple[int, ...], width: int) -> int:
    """q, the number of columns to compute at once; 1 where windows are better.

    Args:
      kernel: its shape [kh, kw, C, O].
      width: W', the result's columns.
    """
    _, kw, channels, outputs = kernel
    if kw == 1:
        return 1
    # Timed on a CPU, forward and backward: of networks' first layers (C = 1 or 3) 20 to
    # 75 % is saved, of C = O = 20 40 %, of C = 16, O = 32 nothing.
    if channels <= 4:
        most = min(max(WIDE // outputs, 2), 6)
    else:
        most = 2 if channels <= 24 and outputs <= 24 else 1
    # Only strips that fill the width: to cut columns off the result, and to add them to
    # its gradient, costs more than is saved (AlexNet's 29: a tenth of its step).
    return next(q for q in range(most, 0, -1) if width % q == 0)


def strips(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], q: int
) -> jax.Array:
    """Strips of an image, each what q neighbouring windows read, as rows.

    Args:
      x: [B, H, W, C], padded as the convolution is.
      window: (kh, kw).
      strides: (sh, sw).
      q: windows per strip; it divides W'.

    Returns:
      [B, H', W' / q, kh * L * C] with L = (q − 1)·sw + kw, ordered (row, column,
      channel).
    """
    (kh, kw), (sh, sw) = window, strides
    batch, rows, cols, channels = x.shape
    height, number = (rows - kh) // sh + 1, ((cols - kw) // sw + 1) // q
    step, length = q * sw, (q - 1) * sw + kw
    # A strip is cut at multiples of the step: then each part is a slice of the image.
    starts = range(0, length, step)
    beyond = max(starts[-1] + number * step - cols, 0)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, beyond), (0, 0)))
    parts = []
    for i in range(kh):
        row = x[:, i : i + sh * (height - 1) + 1 : sh]
        for start in starts:
            part = row[:, :, start : start + number * step]
            part = part.reshape(batch, height, number, step * channels)
            parts.append(part[..., : min(step, length - start) * channels])
    return jnp.concatenate(parts, axis=-1)


def repeated(kernel: jax.Array, stride: int, q: int) -> jax.Array:
    """The matrix that gives q columns of a strip: [kh * L * C, q * O].

    Args:
      kernel: [kh, kw, C, O].
      stride: sw.
      q: windows per strip.
    """
    kh, kw, channels, outputs = kernel.shape
    far = (q - 1) * stride
    shifted = [
        jnp.pad(kernel, ((0, 0), (p * stride, far - p * stride), (0, 0), (0, 0)))
        for p in range(q)
    ]
    shape = (kh * (far + kw) * channels, q * outputs)
    return jnp.stack(shifted, axis=3).reshape(shape)


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], q: int):
    """The convolution of a padded image: [B, H', W', O]."""
    y = strips(x, kernel.shape[:2], strides, q) @ repeated(kernel, strides[1], q)
    return y.reshape(*y.shape[:2], -1, kernel.shape[-1])


def kernel_gradient(
    x: jax.Array,
    dy: jax.Array,
    kernel: tuple[int, ...],
    strides: tuple[int, int],
    q: int,
) -> jax.Array:
    """dK of `convolve`: the products' gradient, added up over the q places.

    Args:
      x: [B, H, W, C], padded.
      dy: [B, H', W', O].
      kernel: its shape [kh, kw, C, O].
      strides: (sh, sw).
      q: windows per strip.
    """
    kh, kw, channels, outputs = kernel
    rows = strips(x, (kh, kw), strides, q)
    d = rows.reshape(-1, rows.shape[-1]).T @ dy.reshape(-1, q * outputs)
    d = d.reshape(kh, -1, channels, q, outputs)
    starts = range(0, q * strides[1], strides[1])
    return sum(
        (d[:, s : s + kw, :, p] for p, s in enumerate(starts)),
        start=jnp.zeros(kernel, d.dtype),
    )
