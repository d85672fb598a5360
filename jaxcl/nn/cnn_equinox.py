"""A small convolutional network of Equinox, for `model.name=jaxcl.nn.cnn_equinox:CNN`.

It is imported only by that name, so nothing else needs Equinox.
"""

from __future__ import annotations

import equinox as eqx
import jax


class CNN(eqx.Module):
    """conv c@3×3 → conv 2c@3×3, each ReLU → 2×2 max pool; dense → ReLU → head.

    It takes one example [C, H, W], as usual in Equinox; initial weights are Equinox's.
    """

    convs: tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]
    dense: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(
        self,
        num_outputs: int,
        input_shape: tuple[int, int, int],
        channels: int = 16,
        width: int = 128,
        *,
        key: jax.Array,
    ):
        height, breadth, depth = input_shape
        a, b, c, d = jax.random.split(key, 4)
        self.convs = (
            eqx.nn.Conv2d(depth, channels, 3, padding=1, key=a),
            eqx.nn.Conv2d(channels, 2 * channels, 3, padding=1, key=b),
        )
        flat = 2 * channels * (height // 4) * (breadth // 4)
        self.dense = eqx.nn.Linear(flat, width, key=c)
        self.head = eqx.nn.Linear(width, num_outputs, key=d)

    def __call__(self, x: jax.Array) -> jax.Array:
        pool = eqx.nn.MaxPool2d(2, 2)
        for conv in self.convs:
            x = pool(jax.nn.relu(conv(x)))
        return self.head(jax.nn.relu(self.dense(x.ravel())))
