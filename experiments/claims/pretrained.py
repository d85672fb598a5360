"""CIFAR-100 as a network pretrained on ImageNet sees it: its features as a data set.

Made once and kept in the cache; a broken-off computation goes on where it was.
"""

from __future__ import annotations

import functools
import io
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import files
from jaxcl.data import sources
from jaxcl.data.cache import cache_root
from jaxcl.nn import capture
from jaxcl.nn.models import EfficientNetLite0

SIDE = 96  # images are scaled to it
BATCH, PART = 250, 5000
SHIFT, SCALE = 127.0, 128.0  # of the published network's input


def cifar100() -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test): float32 [N, 1280] features, int32 labels [N].

    Of EfficientNet-Lite0 with ImageNet's weights in evaluation mode, after the mean
    over positions; images scaled bilinearly to 96 pixels.

    Raises:
      ValueError: the weights are not installed (``jaxcl[pretrained]``).
      DataError: there is no CIFAR-100.
    """
    source = sources.load("cifar100")
    folder = cache_root() / "features" / f"cifar100_efficientnet_lite0_{SIDE}"
    parts = (("train", source.train_x), ("test", source.test_x))
    x_train, x_test = (features_of(folder, name, images) for name, images in parts)
    return x_train, source.train_y, x_test, source.test_y


def features_of(folder: Path, name: str, images: np.ndarray) -> np.ndarray:
    """What the pretrained network's classifier reads of images, part by part.

    Args:
      folder: where the parts are kept; what lies in it is not computed again.
      name: of these images in the folder.
      images: uint8 [N, H, W, 3].

    Returns:
      float32 [N, 1280].
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, began = [], time.monotonic()
    for start in range(0, len(images), PART):
        file = folder / f"{name}_{start}.npy"
        if not file.exists():
            rows = images[start : start + PART]
            batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
            made = [np.asarray(_forward()(jnp.asarray(b))) for b in batches]
            whole = io.BytesIO()
            np.save(whole, np.concatenate(made))
            files.write_whole(file, whole.getvalue())
            print(
                f"features, {folder.name}, {name}: {start + len(rows)}/{len(images)}, "
                f"{time.monotonic() - began:.0f} s",
                file=sys.stderr,
            )
        found.append(np.load(file))
    return np.concatenate(found)


@functools.cache
def _forward():
    """``uint8 [B, H, W, 3] -> float32 [B, 1280]``, compiled."""
    model = EfficientNetLite0(1000, pretrained="all")
    apply = capture.apply_fn(model)
    like = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.float32)
    net, state = capture.init_fn(model, like)(jax.random.key(0))

    @jax.jit
    def forward(net, state, images):
        x = images.astype(jnp.float32)
        x = jax.image.resize(x, (len(x), SIDE, SIDE, 3), "bilinear")
        task = jnp.zeros(len(x), jnp.int32)
        out = apply(net, state, (x - SHIFT) / SCALE, task, jax.random.key(0), False)
        return out.taps["head"]

    return functools.partial(forward, net, state)
