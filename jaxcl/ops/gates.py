"""Gates on units, and what follows from them: the arithmetic of HAT, for any model.

A gate is a number in (0, 1) for each unit of a layer and each task, a = σ(s e), learned
through the embedding e. Everything here is computed in float32 whatever the network
computes in: bfloat16 is too coarse for s·e near 0, and cosh(50) overflows float16.

Source of all: Serrà, Surís, Miron and Karatzoglou, Overcoming catastrophic forgetting
with hard attention to the task, ICML 2018, https://arxiv.org/abs/1801.01423.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.checks import require

COSH_CLAMP = 50.0
"""|s·e| beyond which `compensate` grows no further."""


@jax.custom_jvp
def _sigmoid(x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x)


@_sigmoid.defjvp
def _sigmoid_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    a = _sigmoid(x)
    return a, dx * a * jax.nn.sigmoid(-x)


def gate(embedding: jax.Array, s: float | jax.Array) -> jax.Array:
    """How open a unit is: a = σ(s·e), with ∂a/∂e = s·σ(s·e)·σ(−s·e).

    The usual form of the derivative, a(1 − a), is 0 in float32 from s·e ≈ 17 on, where
    1 − a rounds to 0; σ(−x) does not, and `compensate` needs what is left of it.

    Args:
      embedding: float[..., C], of any width.
      s: the slope, a scalar > 0.

    Returns:
      float32[..., C] in [0, 1].

    Source: eq. 1 of the paper. The official code has the derivative as a(1 − a).
    """
    x = jnp.asarray(s, jnp.float32) * jnp.asarray(embedding, jnp.float32)
    return _sigmoid(x)


def anneal(progress: float | jax.Array, s_max: float) -> jax.Array:
    """The slope over an epoch: s = 1/s_max + (s_max − 1/s_max)·progress.

    Args:
      progress: float[] (b − 1)/(B − 1) for batch b of B, from 0 to 1.
      s_max: the steepest slope, > 0.

    Returns:
      float32[], 1/s_max at the first batch, s_max at the last.

    Raises:
      ValueError: s_max is not greater than 0.

    Source: eq. 3. The official code has the examples seen over their number as
    progress, which does not reach 1.
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
    """Undoes what annealing does to the size of an embedding's gradient.

    g' = g · (s_max/s) · (cosh(clip(s·e, ±50)) + 1)/(cosh(e) + 1)

    With g = ∂L/∂a · s·σ(s·e)σ(−s·e) that is ∂L/∂a · s_max/(2 (cosh e + 1)) wherever
    |s·e| < 50: as if the slope were 1 all through the epoch, times s_max.

    Args:
      gradient: float[..., C] with respect to the embedding.
      embedding: float[..., C].
      s: the slope that the gradient was taken at.
      s_max: the steepest slope.

    Returns:
      float32[..., C].

    Source: eq. 6.
    """
    e = jnp.asarray(embedding, jnp.float32)
    x = jnp.clip(s * e, -COSH_CLAMP, COSH_CLAMP)
    return gradient * (s_max / s * (jnp.cosh(x) + 1) / (jnp.cosh(e) + 1))


def clamp(update: jax.Array, embedding: jax.Array, bound: float) -> jax.Array:
    """The update that takes an embedding no further than ±bound.

    u' = clip(e + u, ±bound) − e. An update that stays inside is passed on bit for bit.

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
    return jnp.where(jnp.abs(there) <= bound, update, edge - embedding)


def conditional_mask(
    before: jax.Array | None, behind: jax.Array, rows: int | None = None
) -> jax.Array:
    """What share of its update a weight keeps, from the units at its two ends.

    m_ij = 1 − min(u_i, u_j), with u_i the cumulative gate of the unit that the weight
    reads and u_j of the one it feeds: a weight is held as firmly as the looser of the
    two holds it. A weight that reads the network's input, and a bias, has only u_j.

    Args:
      before: float32[C] cumulative gates of the layer that is read, in [0, 1]; None
        for a bias or for a layer that reads the network's input.
      behind: float32[O] those of the weight's own layer.
      rows: inputs of the kernel, its last axis but one; C by default. A multiple of C
        when a dense layer reads a flattened [H, W, C] image: channels lie innermost,
        so that the gates are tiled, not repeated.

    Returns:
      float32[rows, O], or float32[O] without ``before``; broadcasts against a dense
      kernel [rows, O], a convolution's [kh, kw, C, O] and a bias [O].

    Raises:
      ValueError: ``rows`` is no multiple of C.

    Source: eq. 2 and what follows it.
    """
    if before is None:
        return 1 - behind
    channels = before.shape[0]
    rows = channels if rows is None else rows
    if rows % channels:
        raise ValueError(
            f"a kernel of {rows} inputs cannot read a layer of {channels} units: it is "
            "no multiple"
        )
    before = jnp.tile(before, rows // channels)
    return 1 - jnp.minimum(before[:, None], behind)
