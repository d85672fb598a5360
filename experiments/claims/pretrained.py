"""CIFAR-100's features from a network pretrained on ImageNet, as a data set.

They are computed once and kept in the cache; an interrupted computation continues.
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

SIDE = 96  # pixels; images are scaled to this side
BATCH, PART = 250, 5000
SHIFT, SCALE = 127.0, 128.0  # normalise the published network's input


def cifar100() -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test): float32 [N, 1280] features, int32 labels [N].

    The features are those of EfficientNet-Lite0 with ImageNet's weights in evaluation
    mode, after the mean over positions; images are scaled bilinearly to 96 pixels.

    Raises:
      ValueError: the weights are not installed (``jaxcl[pretrained]``).
      DataError: CIFAR-100 cannot be obtained.
    """
    source = sources.load("cifar100")
    folder = cache_root() / "features" / f"cifar100_efficientnet_lite0_{SIDE}"
    parts = (("train", source.train_x), ("test", source.test_x))
    x_train, x_test = (features_of(folder, name, images) for name, images in parts)
    return x_train, source.train_y, x_test, source.test_y


def features_of(folder: Path, name: str, images: np.ndarray) -> np.ndarray:
    """The pretrained network's features of images, computed part by part.

    Args:
      folder: keeps the parts; parts that it holds are not computed again.
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
    """The compiled function ``uint8 [B, H, W, 3] -> float32 [B, 1280]``."""
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
