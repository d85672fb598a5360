"""The networks of the papers, in Flax Linen, fast inside a scan on any backend.

Every model takes ``(x, task, train)`` with x [B, H, W, C] (or [B, D]) and returns
logits [B, K] of one Dense called ``head``. A head per task is this Dense with the
task's logit mask, so the shape of a network does not depend on the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax

from jaxcl.nn.efficientnet import EfficientNetLite0
from jaxcl.nn.layers import NORMS, STARTS, Checked, Conv, Dense, Dropout, Norm
from jaxcl.ops.pooling import max_pool
from jaxcl.schema import Count, OneOf, Part, Positive

Norms = Annotated[str, OneOf(NORMS)]


class MLP(Checked):
    """Dense → norm → ReLU → dropout for each width, then the head.

    Attributes:
      widths: of the hidden layers; may be empty.
      num_outputs: K.
      use_bias: in every layer, the head included.
      dropout: after each hidden layer.
      input_dropout: on the input.
      norm: one of `NORMS`.
      num_tasks: T, for norm "batch_per_task".
      start: one of `jaxcl.nn.layers.STARTS`.
    """

    widths: Sequence[Count]
    num_outputs: Count
    use_bias: bool = True
    dropout: Part = 0.0
    input_dropout: Part = 0.0
    norm: Norms = "none"
    num_tasks: Count | None = None
    start: Annotated[str, OneOf(STARTS)] = "uniform"

    @property
    def mixes_examples(self) -> bool:
        return self.norm == "batch_current"

    @property
    def wiring(self) -> dict[str, tuple[str, ...]]:
        """Which layers feed each layer; () is the input."""
        names = [f"hidden_{i}" for i in range(len(self.widths))] + ["head"]
        return _sequence(names)

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        norm = _norm(self.norm, self.num_tasks)
        x = x.reshape(x.shape[0], -1)
        x = Dropout(self.input_dropout)(x, train)
        for i, width in enumerate(self.widths):
            x = Dense(width, self.use_bias, self.start, name=f"hidden_{i}")(x)
            x = nn.relu(norm()(x, task, train))
            x = Dropout(self.dropout)(x, train)
        return Dense(self.num_outputs, self.use_bias, self.start, name="head")(x)


class Linear(Checked):
    """The head alone, on the numbers of the input: for methods without features.

    Attributes:
      num_outputs: K.
      use_bias: of the head.
    """

    num_outputs: Count
    use_bias: bool = True

    @property
    def wiring(self) -> dict[str, tuple[str, ...]]:
        return _sequence(["head"])

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        return Dense(self.num_outputs, self.use_bias, name="head")(x)


class AlexNet(Checked):
    """The small AlexNet of the HAT and GPM papers.

    conv 64@4×4, 128@3×3, 256@2×2 (VALID), each → norm → ReLU → dropout → 2×2 max pool;
    dense 2048, 2048, each → norm → ReLU → dropout; head. Pooling runs before ReLU: they
    commute, also with dropout between them, and ReLU then has only a quarter of the
    numbers.

    Attributes:
      num_outputs: K.
      width: multiplies every hidden width (1/4 for tests).
      norm: one of `NORMS`.
      use_bias: in every layer, the head included.
      dropout: the rate after the first two convolutions; the dense layers and the third
        convolution use `dropout_late`.
      num_tasks: T, for norm "batch_per_task".
    """

    num_outputs: Count
    width: Positive = 1.0
    norm: Norms = "none"
    use_bias: bool = True
    dropout: Part = 0.2
    dropout_late: Part = 0.5
    num_tasks: Count | None = None

    @property
    def mixes_examples(self) -> bool:
        return self.norm == "batch_current"

    @property
    def wiring(self) -> dict[str, tuple[str, ...]]:
        return _sequence(["conv_0", "conv_1", "conv_2", "dense_0", "dense_1", "head"])

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        norm = _norm(self.norm, self.num_tasks)
        rates = (self.dropout, self.dropout, self.dropout_late)
        shapes = ((64, (4, 4)), (128, (3, 3)), (256, (2, 2)))
        for i, ((features, window), rate) in enumerate(zip(shapes, rates, strict=True)):
            features = max(1, round(features * self.width))
            x = Conv(features, window, use_bias=self.use_bias, name=f"conv_{i}")(x)
            x = norm()(x, task, train)
            x = nn.relu(max_pool(Dropout(rate)(x, train)))
        x = x.reshape(x.shape[0], -1)
        for i in range(2):
            features = max(1, round(2048 * self.width))
            x = Dense(features, self.use_bias, name=f"dense_{i}")(x)
            x = nn.relu(norm()(x, task, train))
            x = Dropout(self.dropout_late)(x, train)
        return Dense(self.num_outputs, self.use_bias, name="head")(x)


class ResNet18(Checked):
    """The reduced ResNet-18 of the GEM and A-GEM papers: 20 channels, not 64.

    Attributes:
      num_outputs: K.
      channels: of the first stage; the others have 2, 4 and 8 times as many.
      norm: one of `NORMS`.
      num_tasks: T, for norm "batch_per_task".
    """

    num_outputs: Count
    channels: Count = 20
    norm: Norms = "batch"
    num_tasks: Count | None = None

    @property
    def mixes_examples(self) -> bool:
        return self.norm == "batch_current"

    @property
    def wiring(self) -> dict[str, tuple[str, ...]]:
        wiring: dict[str, tuple[str, ...]] = {"stem": ()}
        # A sum of branches feeds the next layer: all layers added into it are named.
        trunk: tuple[str, ...] = ("stem",)
        for stage, block, stride in _BLOCKS:
            name = f"block_{stage}_{block}"
            wiring[f"{name}_a"] = trunk
            wiring[f"{name}_b"] = (f"{name}_a",)
            if stride == 1:
                trunk = (*trunk, f"{name}_b")
            else:
                wiring[f"{name}_skip"] = trunk
                trunk = (f"{name}_skip", f"{name}_b")
        return wiring | {"head": trunk}

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        norm = _norm(self.norm, self.num_tasks)
        # Without a norm to re-centre them, convolutions need biases of their own.
        conv = partial(Conv, padding="SAME", use_bias=self.norm == "none")
        x = conv(self.channels, (3, 3), name="stem")(x)
        x = nn.relu(norm()(x, task, train))
        for stage, block, stride in _BLOCKS:
            features = self.channels * 2**stage
            name, strides = f"block_{stage}_{block}", (stride, stride)
            y = conv(features, (3, 3), strides, name=f"{name}_a")(x)
            y = nn.relu(norm()(y, task, train))
            y = conv(features, (3, 3), name=f"{name}_b")(y)
            y = norm()(y, task, train)
            if stride != 1:
                x = conv(features, (1, 1), strides, name=f"{name}_skip")(x)
                x = norm()(x, task, train)
            x = nn.relu(x + y)
        return Dense(self.num_outputs, name="head")(x.mean((1, 2)))


_BLOCKS = tuple(
    (stage, block, 2 if stage > 0 and block == 0 else 1)
    for stage in range(4)
    for block in range(2)
)

MODELS = {
    "mlp": MLP,
    "linear": Linear,
    "alexnet": AlexNet,
    "resnet18": ResNet18,
    "efficientnet_lite0": EfficientNetLite0,
}


def _sequence(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {n: (names[i - 1],) if i else () for i, n in enumerate(names)}


def _norm(kind: str, num_tasks: int | None):
    if kind == "batch_per_task" and not (num_tasks and num_tasks > 0):
        raise ValueError(
            f"norm 'batch_per_task' needs num_tasks of at least 1, got {num_tasks}"
        )
    return partial(Norm, kind, num_tasks)
