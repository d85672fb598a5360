"""Growing subspaces and inverses: the arithmetic of projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.checks import require, require_finite
from jaxcl.ops.decompositions import qr_r, svd

EXACT = jax.lax.Precision.HIGHEST
"""For products that must cancel: an accelerator's default rounds to 10 bits."""


def span_update(
    basis: jax.Array,
    count: jax.Array,
    samples: jax.Array,
    threshold: float | jax.Array,
    *,
    crossing: bool | jax.Array,
    axis: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Grows an orthonormal basis until it holds a share of the samples' energy.

    With R the samples, U the basis, R̂ = R − U Uᵀ R and R̂ = Σⱼ uⱼ σⱼ vⱼᵀ, the basis
    already holds h₀ = ‖UᵀR‖²/‖R‖² of the energy, and with the first k directions
    h_k = h₀ + Σ_{j≤k} σⱼ²/‖R‖². It takes u₁ … u_k, where

        crossing = False:  k = #{j ≥ 1: h_j < threshold}
        crossing = True:   k = #{j ≥ 1: h_{j−1} < threshold}

    so "crossing" says whether the direction that crosses the threshold is also taken.
    False is GPM's rule after the first task (with an empty basis) and True its rule
    after later tasks. Shapes are static: the basis is padded with zero columns. Works
    under jit, vmap and `jax.lax.map`.

    Args:
      basis: float[d, r_max], orthonormal columns first, then zero columns.
      count: int32[] number of columns in use.
      samples: float[d, n], one sample per column; zero columns have no effect.
      threshold: share of the energy to hold, in (0, 1]; may be traced.
      crossing: which rule; may be traced.
      axis: the axis of ``samples`` over the d inputs: 0, one sample per column, or 1,
        one sample per row, [n, d], like a layer's inputs.

    Returns:
      The new basis, of the same shape and dtype, and the new count, at most
      min(d, r_max). Earlier columns stay unchanged. Directions whose singular value is
      rounding noise are never taken, so threshold 1 means the samples' span. All is
      computed in float32 at least.

    Raises:
      ValueError: the arrays are not matrices with equally many rows; the threshold is a
        number outside (0, 1]; samples are not finite (tracers are not checked): no
        direction of them would be taken, and nothing protected.

    Example:
      >>> import jax.numpy as jnp, jaxcl
      >>> empty, none = jnp.zeros([3, 3]), jnp.zeros([], int)
      >>> samples = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
      >>> basis, count = jaxcl.ops.linalg.span_update(
      ...     empty, none, samples, 0.9, crossing=True)
      >>> int(count), jnp.abs(basis[:, :2]).tolist()
      (2, [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    Source: Saha et al., Gradient projection memory for continual learning, ICLR 2021,
    https://arxiv.org/abs/2103.09762, eqs. 5, 8 and 9. The paper states one rule; only
    the official code leaves out the crossing direction in the first task.
    """
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 or 1, got {axis}")
    if basis.ndim != 2 or samples.ndim != 2 or basis.shape[0] != samples.shape[axis]:
        raise ValueError(
            f"span_update needs basis [d, r_max] and samples "
            f"{'[d, n]' if axis == 0 else '[n, d]'}, got shapes "
            f"{basis.shape} and {samples.shape}"
        )
    require_finite(samples, "span_update: samples")
    fits = (threshold > 0) & (threshold <= 1)
    require(fits, f"threshold must lie in (0, 1], got {threshold}")
    if not samples.size:
        raise ValueError(f"span_update needs samples, got shape {samples.shape}")
    samples = samples if axis == 0 else samples.T
    wide = jnp.promote_types(jnp.promote_types(basis.dtype, samples.dtype), jnp.float32)
    new, count = _span_update(
        basis.astype(wide), count, samples.astype(wide), threshold, crossing
    )
    return new.astype(basis.dtype), count


@jax.jit
def _span_update(basis, count, samples, threshold, crossing):
    d, capacity = basis.shape
    r = samples
    if r.shape[1] > d:  # only R Rᵀ matters: keep its square root, [d, d]
        r = qr_r(r.T).T
    total = jnp.sum(r * r)
    share = 1 / jnp.where(total > 0, total, 1)
    held = share * jnp.sum(jnp.square(jnp.matmul(basis.T, r, precision=EXACT)))
    left, sigma, _ = svd(_outside(basis, r))
    after = held + share * jnp.cumsum(sigma * sigma)
    before = jnp.concatenate([held[None], after[:-1]])
    reached = jnp.where(crossing, before, after)
    noise = 8 * jnp.finfo(r.dtype).eps * jnp.sqrt(total)
    wanted = (reached < threshold) | (threshold >= 1)  # a sum of 1 may round to less
    wanted = jnp.sum(wanted & (sigma > noise)).astype(jnp.int32)
    added = jnp.minimum(wanted, min(d, capacity) - count).astype(jnp.int32)

    # A direction of little energy has the rounding error of R̂, which is relative to R,
    # and LAPACK's columns are orthonormal only to about 4e-6: this defect leaks into
    # the subspace to be protected. One Newton step squares the defect.
    left = jnp.where(jnp.arange(left.shape[1]) < added, _outside(basis, left), 0)
    norm = jnp.linalg.norm(left, axis=0)
    left = left / jnp.where(norm > 0, norm, 1)
    defect = jnp.matmul(left.T, left, precision=EXACT)
    left = 1.5 * left - 0.5 * jnp.matmul(left, defect, precision=EXACT)

    column = jnp.arange(capacity) - count
    fresh = (column >= 0) & (column < added)
    chosen = left[:, jnp.clip(column, 0, left.shape[1] - 1)]
    return jnp.where(fresh, chosen, basis), (count + added).astype(jnp.int32)


def _outside(basis: jax.Array, r: jax.Array) -> jax.Array:
    """R − U Uᵀ R, applied twice: once leaves a component of rounding size in U."""
    for _ in range(2):
        inside = jnp.matmul(basis.T, r, precision=EXACT)
        r = r - jnp.matmul(basis, inside, precision=EXACT)
    return r


def rls_update(
    inverse: jax.Array,
    samples: jax.Array,
    alpha: float | jax.Array,
    *,
    block: int = 32,
) -> jax.Array:
    """Recursive least squares: removes samples from the space of an input projector.

    One sample x:  k = P x,  P ← P − k kᵀ/(α + xᵀk).

    Several samples, [m, d], are processed in order, `block` of them at a time: their
    updates are computed on the small matrix X P Xᵀ and applied to P as one product,
    P ← P − V diag(1/c) Vᵀ. This is the same in exact arithmetic, with one pass over P
    instead of many.

    With P = I at first and α constant, P = α (αI + Σ x xᵀ)⁻¹: for α → 0 this is the
    projector onto the complement of all samples.

    Args:
      inverse: float[d, d], P; symmetric, positive semi-definite.
      samples: float[d] or float[m, d]; zero rows change nothing.
      alpha: α > 0; may be traced.
      block: samples per pass over P, at least 1.

    Returns:
      float[d, d], symmetric, of P's dtype, computed in float32 at least. A sample
      changes nothing if xᵀPx is only rounding, xᵀPx ≤ 8 ε ‖Px‖ ‖x‖. P is positive
      semi-definite, so xᵀPx ≥ ‖Px‖²/‖P‖ shows that Px is rounding too. With a small α,
      dividing by it would make P grow without bound.

    Raises:
      ValueError: shapes that do not fit; α or block not positive.

    Example:
      >>> import jax.numpy as jnp, jaxcl
      >>> P = jaxcl.ops.linalg.rls_update(jnp.eye(2), jnp.array([1.0, 0.0]), 1.0)
      >>> P.tolist()
      [[0.5, 0.0], [0.0, 1.0]]

    Source: Zeng et al., Continual learning of context-dependent processing in neural
    networks, Nature Machine Intelligence 2019, https://arxiv.org/abs/1810.01256, eq. 3.
    """
    d = inverse.shape[-1]
    if inverse.shape != (d, d) or samples.ndim > 2 or samples.shape[-1] != d:
        raise ValueError(
            "rls_update needs inverse [d, d] and samples [d] or [m, d], got shapes "
            f"{inverse.shape} and {samples.shape}"
        )
    require(alpha > 0, f"alpha must be positive, got {alpha}")
    require(block >= 1, f"block must be at least 1, got {block}")
    if not samples.size:
        return inverse
    # Rounded to bfloat16 after each sample, P would not stay positive semi-definite.
    dtype = inverse.dtype
    both = jnp.promote_types(dtype, samples.dtype)
    inverse, samples = (
        x.astype(jnp.promote_types(both, jnp.float32)) for x in (inverse, samples)
    )
    return _rls(inverse, samples, alpha, block).astype(dtype)


def _rls(inverse: jax.Array, samples: jax.Array, alpha, block: int) -> jax.Array:
    d = inverse.shape[-1]
    if samples.ndim == 1:
        k = jnp.matmul(inverse, samples, precision=EXACT)
        k = k * jax.lax.rsqrt(_gain(samples @ k, k @ k, samples @ samples, alpha))
        return inverse - k[:, None] * k[None, :]

    def take_block(inverse, rows):
        return _rls_block(inverse, rows, alpha), None

    m = samples.shape[0]
    size = min(block, m)
    rows = jnp.pad(samples, ((0, -m % size), (0, 0))).reshape(-1, size, d)
    return jax.lax.scan(take_block, inverse, rows)[0]


def _gain(passed: jax.Array, kk: jax.Array, xx: jax.Array, alpha) -> jax.Array:
    """α + xᵀPx, or ∞ if xᵀPx is at most the rounding error of xᵀ(Px).

    Args:
      passed: xᵀPx.
      kk: ‖Px‖².
      xx: ‖x‖².
      alpha: α.
    """
    noise = 8 * jnp.finfo(xx.dtype).eps * jnp.sqrt(kk * xx)
    return jnp.where(passed > noise, alpha + passed, jnp.inf)


def _rls_block(inverse: jax.Array, x: jax.Array, alpha) -> jax.Array:
    m = x.shape[0]
    k = jnp.matmul(x, inverse, precision=EXACT)  # [m, d], row j becomes Pⱼ xⱼ
    overlap = jnp.matmul(k, x.T, precision=EXACT)  # [m, m], xᵢᵀ P xⱼ

    def take(j, carry):
        k, overlap, gains = carry
        gain = _gain(overlap[j, j], k[j] @ k[j], x[j] @ x[j], alpha)
        later = jnp.where(jnp.arange(m) > j, overlap[:, j] / gain, 0)
        k = k - later[:, None] * k[j]
        overlap = overlap - later[:, None] * overlap[j]
        return k, overlap, gains.at[j].set(gain)

    ones = jnp.ones((m,), inverse.dtype)
    k, _, gains = jax.lax.fori_loop(0, m, take, (k, overlap, ones))
    k = k * jax.lax.rsqrt(gains)[:, None]
    return inverse - jnp.matmul(k.T, k, precision=EXACT)
