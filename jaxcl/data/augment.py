"""Changes images at random in each step, on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require


class Augment(NamedTuple):
    """The random changes that training makes to each image, newly drawn in each batch.

    Attributes:
      flip: mirrors the image left to right, half of the time.
      crop_padding: number of black pixels added on each side; a window of the image's
        own size is then cut out at a random place.
    """

    flip: bool = False
    crop_padding: int = 0


def require_augment(augment: Augment, shape: tuple[int, ...]) -> None:
    """Refuses changes that are impossible for examples of a shape.

    Raises:
      ValueError: a change is impossible; the message gives value and rule.
    """
    pad = augment.crop_padding
    require(pad >= 0, f"crop_padding must be at least 0, got {pad}")
    require(
        len(shape) == 3 or augment == Augment(),
        f"flip and crop_padding are for images, an example is {list(shape)}",
    )
    require(  # beyond it, a window may see nothing of the image
        not pad or pad <= min(shape[:2]),
        f"crop_padding must be at most {min(shape[:2])}, the smaller side of "
        f"{list(shape)}, got {pad}",
    )


def augmented(
    augment: Augment, black: jax.Array
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Makes the function that changes a batch, or None if nothing is changed.

    Args:
      augment: the changes.
      black: float32[C], the network's input for a pixel of 0.

    Returns:
      ``(x [B, H, W, C], key) -> x [B, H, W, C]``; draws for each image separately.
    """
    if augment == Augment():
        return None
    pad = augment.crop_padding

    def change(x: jax.Array, key: jax.Array) -> jax.Array:
        flip_key, crop_key = jax.random.split(key)
        if augment.flip:
            turned = jax.random.bernoulli(flip_key, 0.5, x.shape[:1])
            x = jnp.where(turned[:, None, None, None], x[:, :, ::-1], x)
        if pad:
            rows, height, width, channels = x.shape
            around = (rows, height + 2 * pad, width + 2 * pad, channels)
            wide = jnp.broadcast_to(black, around)
            wide = wide.at[:, pad : pad + height, pad : pad + width].set(x)
            at = jax.random.randint(crop_key, (x.shape[0], 2), 0, 2 * pad + 1)

            def cut(image, at):
                return jax.lax.dynamic_slice(image, (*at, 0), x.shape[1:])

            x = jax.vmap(cut)(wide, at)
        return x

    return change
