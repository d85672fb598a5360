"""How many directions features use, and how many units hardly respond."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.features.matrix import flat, or_one, power_of_two, with_units
from jaxcl.ops.decompositions import one_at_a_time, qr_r
from jaxcl.schema import NonNegative, Range, require


def singular_values(x: jax.Array) -> jax.Array:
    """The singular values of a feature matrix, largest first.

    σ(X) = σ(R), X = QR (of Xᵀ if D > N). The square roots of the Gram matrix's
    eigenvalues are not used: in float32 they are accurate only down to √ε σ₁ instead of
    ε σ₁.

    Args:
      x: float[N, ...] features of N examples; axes after the first are flattened to D.

    Returns:
      float32[min(N, D)]. Not centred.

    Raises:
      ValueError: x has no axis for features.
    """
    x = flat(x)
    return power_of_two(x) * _singular_values(x)


@jax.jit
def _singular_values(x: jax.Array) -> jax.Array:
    """Those of x / `power_of_two`, so that no sum or square overflows or is 0."""
    x = x / power_of_two(x)
    r = x.T if x.shape[0] < x.shape[1] else x
    if r.shape[0] > r.shape[1]:
        r = qr_r(r)
    return _sigma(r)


_sigma = one_at_a_time(lambda a: jnp.linalg.svd(a, compute_uv=False))


def effective_rank(x: jax.Array) -> jax.Array:
    """The number of directions that features use, weighted by their extent.

    exp(H(p)), p = σ / Σσ, H(p) = −Σ p log p.

    Args:
      x: float[N, ...] features of N examples.

    Returns:
      float32[], from 1 to min(N, D); 0 for a matrix of zeros. Not centred.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxcl.features import effective_rank
      >>> round(float(effective_rank(jnp.eye(5, 3))), 3)
      3.0

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality,
    EUSIPCO 2007.
    """
    return _effective(_singular_values(flat(x)))


def stable_rank(x: jax.Array) -> jax.Array:
    """The energy divided by that of the strongest direction.

    ‖X‖_F² / σ₁² = Σσ² / σ₁².

    Args:
      x: float[N, ...] features of N examples.

    Returns:
      float32[], from 1 to the rank; 0 for a matrix of zeros. Not centred.
    """
    return _stable(_singular_values(flat(x)))


def energy_rank(x: jax.Array, share: float = 0.99) -> jax.Array:
    """The fewest directions that hold a share of the energy.

    min {k: Σ_{i ≤ k} σᵢ² ≥ share · Σσ²}.

    Args:
      x: float[N, ...] features of N examples.
      share: in (0, 1).

    Returns:
      float32[]; 0 for a matrix of zeros, NaN if x has a NaN. Not centred.

    Raises:
      ValueError: share outside (0, 1). At 1, only rounding would decide.
    """
    require("share", share, Annotated[float, Range(0, 1, "()")])
    return _energy(_singular_values(flat(x)), share)


class Ranks(NamedTuple):
    """The three ranks of a feature matrix."""

    effective: jax.Array  # float32[]
    stable: jax.Array  # float32[]
    energy: jax.Array  # float32[] at a share of 99 %


@jax.jit
def ranks(x: jax.Array) -> Ranks:
    """`effective_rank`, `stable_rank` and `energy_rank` by one decomposition."""
    sigma = _singular_values(flat(x))
    return Ranks(_effective(sigma), _stable(sigma), _energy(sigma, 0.99))


def dormant_share(x: jax.Array, threshold: float = 0.025) -> jax.Array:
    """The share of units that hardly respond.

    Unit i is dormant if s_i = E|h_i| / (1/C · Σ_k E|h_k|) ≤ τ.

    Args:
      x: float[N, ..., C] outputs after the nonlinearity; a unit is a channel, and its
        mean is over examples and positions.
      threshold: τ ≥ 0.

    Returns:
      float32[] in [0, 1]; 1 for a matrix of zeros.

    Raises:
      ValueError: τ < 0, or x has no axis for units.

    Source: Sokar et al., The dormant neuron phenomenon in deep reinforcement learning,
    ICML 2023, https://arxiv.org/abs/2302.12902, definition 3.1.
    """
    require("threshold", threshold, NonNegative)
    x = with_units(x)
    x = x / power_of_two(x)
    answer = jnp.abs(x).mean(axis=tuple(range(x.ndim - 1)))
    score = answer / or_one(answer.mean())
    return jnp.where(jnp.isnan(score).any(), jnp.nan, jnp.mean(score <= threshold))


def _effective(sigma: jax.Array) -> jax.Array:
    p = sigma / or_one(sigma.sum())
    entropy = -jnp.sum(p * jnp.log(or_one(p)))
    return jnp.where(sigma[0] == 0, 0, jnp.exp(entropy))


def _stable(sigma: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(sigma / or_one(sigma[0])))


def _energy(sigma: jax.Array, share: float) -> jax.Array:
    held = jnp.cumsum(jnp.square(sigma / or_one(sigma[0])))
    rank = 1 + jnp.sum(held < share * held[-1])
    rank = jnp.where(sigma[0] == 0, 0, rank).astype(jnp.float32)
    return jnp.where(jnp.isfinite(sigma[0]), rank, jnp.nan)
