"""The networks of the papers, in Flax Linen, fast inside a scan on any backend.

Every model takes ``(x, task, train)`` with x [B, H, W, C] (or [B, D]) and returns
logits [B, K] of one Dense called ``head``; a head per task is that Dense with the
task's logit mask, so that the shape of a network does not depend on the task.

Kernels start uniform in ±1/sqrt(fan_in), biases too: what PyTorch's layers do, in
which the papers' figures were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

NORMS = ("none", "batch", "batch_current", "batch_per_task", "group", "layer")

kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int):
    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def pads(size: int, window: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after one spatial axis, as XLA's SAME and VALID put them."""
    if padding == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def patches(
    x: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
) -> jax.Array:
    """Every window of an image as a row.

    Features are ordered (row, column, channel), as ``kernel.reshape(-1, n_out)`` of an
    HWIO kernel is, so that ``patches(x) @ kernel.reshape(-1, n_out)`` is the
    convolution. (`lax.conv_general_dilated_patches` orders them channel first.) Made of
    slices: XLA's CPU backend runs a `lax` convolution inside a loop 20 times slower.

    Args:
      x: [B, H, W, C].
      window: (kh, kw).
      strides: (sh, sw).
      padding: "VALID" or "SAME".

    Returns:
      [B, H', W', kh * kw * C], dtype of x.
    """
    (kh, kw), (sh, sw) = window, strides
    top, bottom = pads(x.shape[1], kh, sh, padding)
    left, right = pads(x.shape[2], kw, sw, padding)
    if top or bottom or left or right:
        x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
) -> jax.Array:
    """Convolution as one matrix product, forward and backward.

    y = patches(x) K;  dK = patches(x)ᵀ dy;  dx = patches(padded dy) flip(K)ᵀ.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C, O].
      strides: (sh, sw).
      padding: "VALID" or "SAME".

    Returns:
      [B, H', W', O].
    """
    p = patches(x, kernel.shape[:2], strides, padding)
    return p @ kernel.reshape(-1, kernel.shape[-1])


def _convolve_fwd(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding), (x, kernel)


def _convolve_bwd(strides, padding, residuals, dy):
    x, kernel = residuals
    dk = kernel_gradient(patches(x, kernel.shape[:2], strides, padding), dy, kernel)
    return input_gradient(x, kernel, dy, strides, padding), dk


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
    padding: str,
) -> jax.Array:
    """dx of `convolve`: the dilated, padded dy convolved with the flipped kernel."""
    kh, kw, c, o = kernel.shape
    config = []
    for axis, k, s in ((1, kh, strides[0]), (2, kw, strides[1])):
        size = x.shape[axis]
        before = pads(size, k, s, padding)[0]
        dilated = (dy.shape[axis] - 1) * s + 1
        low = k - 1 - before
        config.append((low, size + k - 1 - low - dilated, s - 1))
    zero = jnp.zeros((), dy.dtype)
    dy = jax.lax.pad(dy, zero, ((0, 0, 0), *config, (0, 0, 0)))
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2).reshape(kh * kw * o, c)
    return patches(dy, (kh, kw)) @ flipped


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Non-overlapping max pooling of [B, H, W, C]; a ragged border is cut off."""
    b, h, w, c = x.shape
    h, w = h // size * size, w // size * size
    x = x[:, :h, :w].reshape(b, h // size, size, w // size, size, c)
    return x.max(axis=(2, 4))


class Dense(nn.Module):
    """y = x K + b on the last axis."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        y = x @ self.param("kernel", kernel_init, (d, self.features))
        if self.use_bias:
            y = y + self.param("bias", _bias_init(d), (self.features,))
        return y


class Conv(nn.Module):
    """Two-dimensional convolution by `convolve`."""

    features: int
    window: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape)
        y = jnp.asarray(convolve(x, kernel, self.strides, self.padding))
        if self.use_bias:
            fan_in = shape[0] * shape[1] * shape[2]
            y = y + self.param("bias", _bias_init(fan_in), (self.features,))
        return y


class Dropout(nn.Module):
    """Zeroes each element with probability `rate`, rounded to a multiple of 1/256.

    A byte of randomness an element, not four: on a CPU the random bits, not the
    arithmetic, are what dropout costs. What is kept is scaled by the exact inverse of
    the rounded probability, so the expectation is unbiased.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dropped = round(self.rate * 256)
        if not train or dropped == 0:
            return x
        bits = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint8)
        return jnp.where(bits >= dropped, x * (256 / (256 - dropped)), 0)


class CurrentBatchNorm(nn.Module):
    """BatchNorm that always uses the batch's statistics, in evaluation too.

    x̂ = (x − mean_B) / sqrt(var_B + ε) · scale + bias, over all axes but the last. What
    PyTorch's ``track_running_stats=False`` does and GPM's CIFAR network uses.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        variance = jnp.square(x - mean).mean(axes)
        return (x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias


class TaskBatchNorm(nn.Module):
    """One BatchNorm a task: statistics, scale and shift of the example's own task.

    x̂_b = (x_b − mean_t) / sqrt(var_t + ε) · scale_t + bias_t with t the task of example
    b; in training over the batch's examples of task t, in evaluation their running mean
    over training, mean_t ← .9 mean_t + .1 mean_B. A task's row moves only when a
    training batch has examples of it.
    """

    num_tasks: int
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        shape = (self.num_tasks, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)

        def of_examples(bank: jax.Array) -> jax.Array:  # [T, C] -> [B, 1, ..., C]
            return bank[task].reshape(len(x), *(1,) * (x.ndim - 2), x.shape[-1])

        if not train:
            m, v = mean.value, variance.value
            centred = x - of_examples(m)
        else:
            member = jax.nn.one_hot(task, self.num_tasks, axis=0)  # [T, B]
            count = member.sum(1, keepdims=True)
            member = member / jnp.maximum(count, 1)
            inner = tuple(range(1, x.ndim - 1))
            exact = jax.lax.Precision.HIGHEST
            m = jnp.matmul(member, x.mean(inner), precision=exact)
            centred = x - of_examples(m)
            v = jnp.matmul(member, jnp.square(centred).mean(inner), precision=exact)
            for running, new in ((mean, m), (variance, v)):
                moved = self.momentum * running.value + (1 - self.momentum) * new
                running.value = jnp.where(count > 0, moved, running.value)
        factor = jax.lax.rsqrt(v + self.epsilon) * scale
        return centred * of_examples(factor) + of_examples(bias)


class Norm(nn.Module):
    """One of `NORMS`; "none" is the identity and has no parameters."""

    kind: str
    num_tasks: int | None = None  # of batch_per_task

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        if self.kind == "batch_current":
            return CurrentBatchNorm()(x)
        if self.kind == "batch_per_task":
            return TaskBatchNorm(self.num_tasks)(x, task, train)
        if self.kind == "group":
            groups = next(g for g in (8, 5, 4, 3, 2, 1) if x.shape[-1] % g == 0)
            return nn.GroupNorm(num_groups=groups)(x)
        if self.kind == "layer":
            return nn.LayerNorm()(x)
        return x


class MLP(nn.Module):
    """Dense → norm → ReLU → dropout for each width, then the head.

    Attributes:
      widths: of the hidden layers; may be empty.
      num_outputs: K.
      use_bias: in every layer, the head included.
      dropout: after each hidden layer.
      input_dropout: on the input.
      norm: one of `NORMS`.
      num_tasks: T, for norm "batch_per_task".
    """

    widths: Sequence[int]
    num_outputs: int
    use_bias: bool = True
    dropout: float = 0.0
    input_dropout: float = 0.0
    norm: str = "none"
    num_tasks: int | None = None

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
            x = Dense(width, self.use_bias, name=f"hidden_{i}")(x)
            x = nn.relu(norm()(x, task, train))
            x = Dropout(self.dropout)(x, train)
        return Dense(self.num_outputs, self.use_bias, name="head")(x)


class AlexNet(nn.Module):
    """The small AlexNet of the HAT and GPM papers.

    conv 64@4×4, 128@3×3, 256@2×2 (VALID), each → norm → ReLU → dropout → 2×2 max pool;
    dense 2048, 2048, each → norm → ReLU → dropout; head. Pooling runs before ReLU: they
    commute, dropout between them included, and a quarter is left to rectify.

    Attributes:
      num_outputs: K.
      width: multiplies every hidden width (1/4 for tests).
      norm: one of `NORMS`.
      use_bias: in every layer, the head included.
      dropout: of the first two convolutions; the dense layers and the third
        convolution have `dropout_late`.
      num_tasks: T, for norm "batch_per_task".
    """

    num_outputs: int
    width: float = 1.0
    norm: str = "none"
    use_bias: bool = True
    dropout: float = 0.2
    dropout_late: float = 0.5
    num_tasks: int | None = None

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


class ResNet18(nn.Module):
    """The reduced ResNet-18 of the GEM and A-GEM papers: 20 channels, not 64.

    Attributes:
      num_outputs: K.
      channels: of the first stage; the others have 2, 4 and 8 times as many.
      norm: one of `NORMS`.
      num_tasks: T, for norm "batch_per_task".
    """

    num_outputs: int
    channels: int = 20
    norm: str = "batch"
    num_tasks: int | None = None

    @property
    def mixes_examples(self) -> bool:
        return self.norm == "batch_current"

    @property
    def wiring(self) -> dict[str, tuple[str, ...]]:
        wiring: dict[str, tuple[str, ...]] = {"stem": ()}
        # A sum of branches feeds what follows: every layer that adds into it is named.
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

MODELS = {"mlp": MLP, "alexnet": AlexNet, "resnet18": ResNet18}


def _sequence(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {n: (names[i - 1],) if i else () for i, n in enumerate(names)}


def _norm(kind: str, num_tasks: int | None):
    if kind not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {kind!r}")
    if kind == "batch_per_task" and not (num_tasks and num_tasks > 0):
        raise ValueError(
            f"norm 'batch_per_task' needs num_tasks of at least 1, got {num_tasks}"
        )
    return partial(Norm, kind, num_tasks)
