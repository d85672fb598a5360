"""Changes inputs at random in each step, on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import called, imported, require
from jaxcl.types import Augmentation

OWN = 2
"""Folded into a step's key for a user's function; the other changes split the key."""


class Augment(NamedTuple):
    """The random changes that training makes to each input, newly drawn in each batch.

    Attributes:
      flip: mirrors the image left to right, half of the time.
      crop_padding: number of black pixels added on each side; a window of the image's
        own size is then cut out at a random place.
      own: a user's function, applied last.
    """

    flip: bool = False
    crop_padding: int = 0
    own: Augmentation | None = None


def make_augment(
    flip: bool, crop_padding: int, own: str | Augmentation, *, kind: str, shape: tuple
) -> Augment:
    """An `Augment` for examples of a shape in a stream of a kind.

    Raises:
      ValueError: a change is impossible; the message gives value and rule. ``own`` is
        no function ``(x [B, ...], key) -> x``, or its import path.
    """
    pad, image = crop_padding, flip or crop_padding
    require(pad >= 0, f"crop_padding must be at least 0, got {pad}")
    require(
        len(shape) == 3 or not image,
        f"flip and crop_padding are for images, an example is {list(shape)}",
    )
    require(  # beyond it, a window may see nothing of the image
        not pad or pad <= min(shape[:2]),
        f"crop_padding must be at most {min(shape[:2])}, the smaller side of "
        f"{list(shape)}, got {pad}",
    )
    require(  # what is mirrored would be the permuted image, which has no sides
        kind != "permuted" or not image,
        "flip and crop_padding are for images whose pixels lie where they were taken, "
        "not for kind='permuted'",
    )
    return Augment(flip, pad, _function(own, shape) if own else None)


def _function(own: str | Augmentation, shape: tuple) -> Augmentation:
    """A user's function; refuses one that does not give a batch like its own."""
    name = own if isinstance(own, str) else getattr(own, "__name__", repr(own))
    found = imported(own, "augment") if isinstance(own, str) else own
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def of(batch):
        return jax.eval_shape(found, batch, jax.random.key(0))

    made = called(f"augment {name}", of, x)
    came = (
        f"{made.dtype}{list(made.shape)}"
        if isinstance(made, jax.ShapeDtypeStruct)
        else f"a {type(made).__name__}"
    )
    wanted = f"{x.dtype}{list(x.shape)}"
    require(
        came == wanted,
        f"augment {name} must give a batch like the one it is given, {wanted}, it "
        f"gives {came}",
    )
    return found


def augmented(augment: Augment, black: jax.Array) -> Augmentation | None:
    """Makes the function that changes a batch, or None if nothing is changed.

    Args:
      augment: the changes.
      black: float32[C], the network's input for a pixel of 0.

    Returns:
      ``(x [B, ...], key) -> x [B, ...]``; draws for each image separately.
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
        if augment.own is not None:
            x = augment.own(x, jax.random.fold_in(key, OWN))
        return x

    return change
