"""Gates on units, and what is computed from them: HAT's arithmetic, for any model.

A gate is a number in (0, 1) for each unit of a layer and each task, a = σ(s e), learned
through the embedding e. Everything here is computed in float32 whatever the network
computes in: bfloat16 is too coarse for s·e near 0, and cosh(50) overflows float16.

Source of all: Serrà, Surís, Miron and Karatzoglou, Overcoming catastrophic forgetting
with hard attention to the task, ICML 2018, https://arxiv.org/abs/1801.01423.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxcl.checks import require

COSH_CLAMP = 50.0
"""The |s·e| above which `compensate` grows no further."""

DERIVATIVES = ("float32", "exact")
"""The derivatives that a gate may have; see `gate`."""

OPEN = 24 * math.log(2)
"""The s·e ≈ 16.64 from which on e^(−s·e) is lost in a float32 sum with 1."""


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sigmoid(x: jax.Array, derivative: str) -> jax.Array:
    # Not `jax.nn.sigmoid`, whose rounding near 1 depends on the backend. From OPEN on
    # it is set to 1, whatever the accuracy of exp and of the division.
    return jnp.where(x >= OPEN, 1, 1 / (1 + jnp.exp(-x)))


@_sigmoid.defjvp
def _sigmoid_jvp(derivative, primals, tangents):
    (x,), (dx,) = primals, tangents
    a = _sigmoid(x, derivative)
    rest = _sigmoid(-x, derivative) if derivative == "exact" else 1 - a
    return a, dx * a * rest


def gate(
    embedding: jax.Array, s: float | jax.Array, derivative: str = "float32"
) -> jax.Array:
    """How open a unit is: a = σ(s·e), with one of two derivatives.

      "float32":  ∂a/∂e = s·a(1 − a), a rounded to float32; 0 where s·e ≥ 24 ln 2
      "exact":    ∂a/∂e = s·σ(s·e)·σ(−s·e)

    The two differ if a gate is open: float32 has no number between 1 − 2⁻²⁴ and 1, so
    a(1 − a) has few digits left from s·e ≈ 8 on and is exactly 0 from 24 ln 2 = 16.64
    on, where a rounds to 1. There the gate does not change as long as s stays so steep.
    σ(−s·e) does not vanish, `compensate` undoes its small size, and the regulariser
    keeps closing open gates. Published results come from the first.

    Args:
      embedding: float[..., C], of any float dtype.
      s: the slope, a scalar > 0.
      derivative: one of `DERIVATIVES`.

    Returns:
      float32[..., C] in [0, 1], exactly 1 where s·e ≥ 24 ln 2.

    Raises:
      ValueError: an unknown derivative.

    Source: eq. 1 of the paper. The official code computes in float32, with a(1 − a).
    """
    require(
        derivative in DERIVATIVES,
        f"derivative must be one of {', '.join(DERIVATIVES)}, got {derivative!r}",
    )
    x = jnp.asarray(s, jnp.float32) * jnp.asarray(embedding, jnp.float32)
    return _sigmoid(x, derivative)


def anneal(progress: float | jax.Array, s_max: float) -> jax.Array:
    """The slope over an epoch: s = 1/s_max + (s_max − 1/s_max)·progress.

    Args:
      progress: float[] in [0, 1], 0 at the epoch's first batch: (b − 1)/(B − 1) for
        batch b of B, or the share of the epoch's examples that came before it.
      s_max: the steepest slope, > 0.

    Returns:
      float32[], 1/s_max where progress is 0, s_max where it is 1.

    Raises:
      ValueError: s_max is not greater than 0.

    Source: eq. 3, which uses the first kind of progress. The official code uses the
    second, which does not reach 1.
    """
    require(s_max > 0, f"s_max must be greater than 0, got {s_max}")
    progress = jnp.asarray(progress, jnp.float32)
    return 1 / s_max + (s_max - 1 / s_max) * progress


def compensate(
    gradient: jax.Array,
    embedding: jax.Array,
    s: float | jax.Array,
    s_max: float,
) -> jax.Array:
    """Undoes the effect of annealing on the size of an embedding's gradient.

    g' = g · (s_max/s) · (cosh(clip(s·e, ±50)) + 1)/(cosh(e) + 1)

    For the exact g = ∂L/∂a · s·σ(s·e)σ(−s·e), this is ∂L/∂a · s_max/(2 (cosh e + 1)) if
    |s·e| < 50: as if the slope were 1 during the whole epoch, times s_max. With the
    default derivative of `gate` this holds up to rounding, and g' is 0 for an open
    gate, s·e ≥ 24 ln 2.

    Args:
      gradient: float[..., C] with respect to the embedding.
      embedding: float[..., C].
      s: the slope that the gradient was taken at.
      s_max: the steepest slope.

    Returns:
      float32[..., C].

    Raises:
      ValueError: s is not greater than 0.

    Source: eq. 6.
    """
    require(s > 0, f"s must be greater than 0, got {s}")
    e = jnp.asarray(embedding, jnp.float32)
    x = jnp.clip(s * e, -COSH_CLAMP, COSH_CLAMP)
    return gradient * (s_max / s * (jnp.cosh(x) + 1) / (jnp.cosh(e) + 1))


def clamp(update: jax.Array, embedding: jax.Array, bound: float) -> jax.Array:
    """The update that takes an embedding no further than ±bound.

    u' = clip(e + u, ±bound) − e. An update that stays inside is passed on bit for bit.
    The dtype stays the same.

    Args:
      update: float[..., C].
      embedding: float[..., C], before the update.
      bound: > 0.

    Returns:
      Like ``update``.

    Source: sec. 2.5: beyond ±6 the gradient vanishes and a unit could not come back.
    """
    there = embedding + update
    edge = jnp.clip(there, -bound, bound)
    # Not there == edge: a compiler may compute the sum twice, with another rounding.
    moved = jnp.where(jnp.abs(there) <= bound, update, edge - embedding)
    return moved.astype(update.dtype)


def conditional_mask(
    before: jax.Array | None,
    behind: jax.Array,
    rows: int | None = None,
    *,
    axis: int = -1,
    repeats: bool = False,
) -> jax.Array:
    """The share of its update that a weight keeps, from the units at its two ends.

    m_ij = 1 − min(u_i, u_j), with u_i the cumulative gate of the unit that the weight
    reads and u_j that of the unit it feeds: a weight is held only as firmly as the
    smaller of the two. A weight that reads the network's input, and a bias, has only
    u_j.

    Args:
      before: float32[C] cumulative gates of the layer that is read, in [0, 1]; None
        for a bias or for a layer that reads the network's input.
      behind: float32[O] cumulative gates of the weight's own layer.
      rows: inputs of the kernel, its second last axis; C by default. A multiple of C
        if a dense layer reads a flattened [H, W, C] image: channels are the innermost
        axis, so the gates are tiled, not repeated.
      axis: the kernel's axis over its outputs: -1, or 0 for [outputs, inputs].
      repeats: True if a [C, H, W] image was flattened: the gates are repeated.

    Returns:
      float32[rows, O], or float32[O] without ``before``; broadcasts against a dense
      kernel [rows, O], a convolution's [kh, kw, C, O] and a bias [O]. With axis=0
      float32[O, rows] or float32[O, 1]; a convolution's [O, C, kh, kw] needs two more
      axes behind.

    Raises:
      ValueError: ``rows`` is no multiple of C; ``axis`` is neither -1 nor 0.

    Source: eq. 2 and what follows it.
    """
    require(axis in (-1, 0), f"axis must be -1 or 0, got {axis}")
    if before is None:
        return 1 - (behind if axis == -1 else behind[:, None])
    channels = before.shape[0]
    rows = channels if rows is None else rows
    if rows % channels:
        raise ValueError(
            f"a kernel of {rows} inputs cannot read a layer of {channels} units: it is "
            "no multiple"
        )
    lay_out = jnp.repeat if repeats else jnp.tile
    before = lay_out(before, rows // channels)
    if axis == 0:
        return 1 - jnp.minimum(before, behind[:, None])
    return 1 - jnp.minimum(before[:, None], behind)
