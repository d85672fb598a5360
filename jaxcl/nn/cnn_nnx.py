"""A small convolutional network of NNX, for `model.name=jaxcl.nn.cnn_nnx:CNN`."""

from __future__ import annotations

import jax
from flax import nnx


class CNN(nnx.Module):
    """conv c@3×3 → conv 2c@3×3, each ReLU → 2×2 max pool; dense → ReLU → head.

    It takes a batch [B, H, W, C]; initial weights are NNX's own.
    """

    def __init__(
        self,
        num_outputs: int,
        input_shape: tuple[int, int, int],
        channels: int = 16,
        width: int = 128,
        *,
        rngs: nnx.Rngs,
    ):
        height, breadth, depth = input_shape
        self.first = nnx.Conv(depth, channels, (3, 3), rngs=rngs)
        self.second = nnx.Conv(channels, 2 * channels, (3, 3), rngs=rngs)
        flat = 2 * channels * (height // 4) * (breadth // 4)
        self.dense = nnx.Linear(flat, width, rngs=rngs)
        self.head = nnx.Linear(width, num_outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.head(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))
