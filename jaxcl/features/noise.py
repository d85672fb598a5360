"""How much of the noise in an image is left in its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.features.matrix import array, flat, or_one
from jaxcl.schema import Positive, require


class NoiseKept(NamedTuple):
    """Shares of noise; smaller means that more noise is discarded."""

    features: jax.Array  # float32[]
    pixels: jax.Array  # float32[] the same share of the images themselves


def noise_kept(
    features: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    key: jax.Array,
    *,
    scale: float,
) -> NoiseKept:
    """How far noise moves features, compared with how far another image does.

    E‖f(x + ε) − f(x)‖² / E‖f(x) − f(x′)‖², with ε ~ N(0, scale²) on each pixel and
    different images x and x′; also the same with f(x) = x. If the features' share is
    below the pixels' share, the network discards noise; if above, it amplifies noise.

    Args:
      features: f, ``[N, ...] -> [N, ...]``, evaluation mode.
      x: float[N, ...] images, N ≥ 2.
      key: a typed key for the noise.
      scale: standard deviation of the noise, > 0.

    Returns:
      A `NoiseKept`; NaN if all features are the same.

    Raises:
      ValueError: there is only one image, or the scale is not positive.
    """
    x = array(x)
    if x.shape[:1] < (2,):
        raise ValueError(f"noise is compared with other images, got {x.shape[:1]}")
    require("scale", scale, Positive)
    noisy = x + scale * jax.random.normal(key, x.shape, x.dtype)
    return NoiseKept(_share(features(x), features(noisy)), _share(x, noisy))


def _share(clean: jax.Array, noisy: jax.Array) -> jax.Array:
    clean, noisy = flat(clean), flat(noisy)
    size = or_one(jnp.abs(clean).max())  # squares of small numbers would be 0
    clean, noisy = clean / size, noisy / size
    moved = jnp.sum(jnp.square(noisy - clean), axis=1).mean()
    # The mean over pairs i ≠ j of ‖fᵢ − fⱼ‖² is 2/(N − 1) Σ‖fᵢ − mean‖².
    spread = 2 / (len(clean) - 1) * jnp.sum(jnp.square(clean - clean.mean(axis=0)))
    return jnp.where(spread > 0, moved / or_one(spread), jnp.nan)
