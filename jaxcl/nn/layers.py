"""The layers that the networks of `jaxcl.nn.models` are made of.

Kernels and biases start uniform in ±1/sqrt(fan_in), as in PyTorch, with which most of
the papers' figures were measured.
"""

from __future__ import annotations

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.ops.convolution import add_bias, convolve
from jaxcl.ops.depthwise import depthwise
from jaxcl.ops.trees import wide
from jaxcl.schema import OneOf, Part, kinds_of, require_all

NORMS = ("none", "batch", "batch_current", "batch_per_task", "group", "layer")

# "normal": N(0, .1²) cut off at ±.2, biases .1, as in A-GEM's TensorFlow code.
STARTS = ("uniform", "normal")

kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int):
    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Checked(nn.Module):
    """A module whose fields are checked against their annotations.

    Raises:
      ValueError: when the module is made, as `jaxcl.schema.require`.
    """

    def __post_init__(self):
        kinds = kinds_of(type(self))
        own = {k: getattr(self, k) for k in kinds if k not in ("parent", "name")}
        require_all(f"{type(self).__name__}: ", own, kinds)
        super().__post_init__()


class Dense(nn.Module):
    """y = x K + b on the last axis; `start` is one of `STARTS`."""

    features: int
    use_bias: bool = True
    start: str = "uniform"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        kernel, bias = kernel_init, _bias_init(d)
        if self.start == "normal":
            kernel = nn.initializers.truncated_normal(0.1)
            bias = nn.initializers.constant(0.1)
        y = x @ self.param("kernel", kernel, (d, self.features), jnp.float32)
        if self.use_bias:
            y = y + self.param("bias", bias, (self.features,), jnp.float32)
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
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        y = jnp.asarray(convolve(x, kernel, self.strides, self.padding))
        if self.use_bias:
            fan_in = shape[0] * shape[1] * shape[2]
            bias = self.param("bias", _bias_init(fan_in), (self.features,), jnp.float32)
            y = jnp.asarray(add_bias(y, bias))
        return y


class Depthwise(nn.Module):
    """Depthwise convolution, SAME and without biases, by `depthwise`."""

    window: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # A channel reads only its own window: that is its fan-in.
        side, channels = self.window, x.shape[-1]
        start = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=(0, 1), out_axis=(), batch_axis=2
        )
        kernel = self.param("kernel", start, (side, side, channels), jnp.float32)
        return jnp.asarray(depthwise(x, kernel, self.stride, "SAME"))


class Dropout(Checked):
    """Zeroes each element with probability `rate`, as a multiple of 1/256 in (0, 1).

    It draws one random byte per element: on a CPU, most of the cost of dropout is that
    of random bits, not of arithmetic. Kept elements are scaled by the exact inverse of
    the rounded probability, so the expectation is unbiased.
    """

    rate: Part

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        # At least 1, or a small rate would do nothing; 256 would leave nothing.
        dropped = min(max(round(self.rate * 256), 1), 255)
        noise = random_bytes(self.make_rng("dropout"), x.shape)
        return jnp.where(noise >= dropped, x * (256 / (256 - dropped)), 0)


def random_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint8 of a shape, four from each 32-bit word.

    `jax.random.bits` hashes a whole word for each requested byte.
    """
    size = math.prod(shape)

    def draw() -> jax.Array:
        words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
        each = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)
        return each[:size].reshape(shape)

    # XLA's CPU backend would move the hash into the loop that reads the bytes, and a
    # convolution reads them once per element of its window. It has to store the result
    # of a conditional, and it does not know that this one is always taken.
    always = (jax.random.key_data(key)[0] | 1) > 0
    return jax.lax.cond(always, draw, lambda: jnp.zeros(shape, jnp.uint8))


class CurrentBatchNorm(nn.Module):
    """BatchNorm that always uses the batch's statistics, in evaluation too.

    x̂ = (x − mean_B) / sqrt(var_B + ε) · scale + bias, over all axes but the last. The
    same as PyTorch's ``track_running_stats=False``, which GPM's CIFAR network uses.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        axes, dtype, x = tuple(range(x.ndim - 1)), x.dtype, wide(x)
        mean = x.mean(axes)
        variance = jnp.square(x - mean).mean(axes)
        y = (x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
        return y.astype(dtype)


class TaskBatchNorm(nn.Module):
    """A BatchNorm for each task: statistics, scale and shift of the example's own task.

    x̂_b = (x_b − mean_t) / sqrt(var_t + ε) · scale_t + bias_t with t the task of example
    b. In evaluation mean_t and var_t are task t's running statistics. In training they
    are those of the n_t examples of task t among the batch's B, over all axes but the
    last, and move the running ones by their share of the batch:

        mean_t ← k mean_t + (1 − k) mean_B,  k = .9^(n_t/B)
        var_t  ← k var_t + (1 − k) N/(N − 1) var_B

    with N the number of values per channel in var_B. So B examples move the statistics
    equally in one batch of a single task and spread over many batches, and the running
    variance tends to that of the data. One example has no variance: it is normalised by
    the running statistics as they were, and moves only the mean.
    """

    num_tasks: int
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        shape = (self.num_tasks, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)

        def of_examples(bank: jax.Array) -> jax.Array:  # [T, C] -> [B, 1, ..., C]
            return bank[task].reshape(len(x), *(1,) * (x.ndim - 2), x.shape[-1])

        m, v, dtype, x = mean.value, variance.value, x.dtype, wide(x)
        if not train:
            centred = x - of_examples(m)
        else:
            member = jax.nn.one_hot(task, self.num_tasks, axis=0)  # [T, B]
            count = member.sum(1, keepdims=True)
            member = member / jnp.maximum(count, 1)
            several = count > 1
            inner = tuple(range(1, x.ndim - 1))
            exact = jax.lax.Precision.HIGHEST
            batch_mean = jnp.matmul(member, x.mean(inner), precision=exact)
            m = jnp.where(several, batch_mean, m)
            centred = x - of_examples(m)
            squares = jnp.square(centred).mean(inner)
            v = jnp.where(several, jnp.matmul(member, squares, precision=exact), v)
            values = count * math.prod(x.shape[1:-1])
            unbiased = v * jnp.where(several, values / jnp.maximum(values - 1, 1), 1)
            share = -jnp.expm1(math.log(self.momentum) * count / len(x))
            for running, new in ((mean, batch_mean), (variance, unbiased)):
                running.value = running.value + share * (new - running.value)
        factor = jax.lax.rsqrt(v + self.epsilon) * scale
        return (centred * of_examples(factor) + of_examples(bias)).astype(dtype)


class Norm(Checked):
    """One of `NORMS`; "none" is the identity and has no parameters."""

    kind: Annotated[str, OneOf(NORMS)]
    num_tasks: int | None = None  # of batch_per_task

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        # Flax's fast variance, E[x²] − E[x]², loses digits to cancellation. A maximum
        # cuts it off at 0, and its gradient compares values that XLA may compute twice.
        exact = {"use_fast_variance": False}
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, **exact)(x)
        if self.kind == "batch_current":
            return CurrentBatchNorm()(x)
        if self.kind == "batch_per_task":
            return TaskBatchNorm(self.num_tasks)(x, task, train)
        if self.kind == "group":
            groups = next(g for g in (8, 5, 4, 3, 2, 1) if x.shape[-1] % g == 0)
            return nn.GroupNorm(num_groups=groups, **exact)(x)
        if self.kind == "layer":
            return nn.LayerNorm(**exact)(x)
        return x
