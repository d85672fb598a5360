"""QR, SVD, eigenvalues and least squares, safe on a CPU that is split into devices.

On a CPU, LAPACK's kernels distribute a batch of matrices over a pool of threads and
wait for them. Inside `jax.shard_map` each device of the CPU uses a thread of the same
pool: if all of them wait, none is left to do the work, and the program hangs. A single
matrix is decomposed by the calling thread, which then waits for no other. So on a CPU a
batch is processed here one matrix after another; elsewhere it stays a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve


def one_at_a_time(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `jax.vmap` of a function call it once per example on a CPU.

    Args:
      fn: a function of arrays that decomposes, factors or solves with one matrix.

    Returns:
      The same function. Under `jax.vmap`, also a nested one, it is a `jax.lax.map` on a
      CPU and as usual on other backends. It has no reverse-mode derivative.
    """

    @jax.custom_batching.custom_vmap
    def single(*args):
        return fn(*args)

    @jax.custom_batching.custom_vmap
    def several(*args):
        return jax.lax.platform_dependent(
            *args,
            cpu=lambda *args: jax.lax.map(lambda one: fn(*one), args),
            default=jax.vmap(fn),
        )

    @single.def_vmap
    def once(size, batched, *args):
        result = several(*_whole(size, batched, args))
        return result, jax.tree.map(lambda _: True, result)

    @several.def_vmap
    def again(size, batched, *args):
        # Two axes become one: what `fn` does is never traced outside of it, where other
        # settings may hold, such as those of float64.
        args = _whole(size, batched, args)
        lengths = args[0].shape[:2]
        result = several(*(a.reshape(-1, *a.shape[2:]) for a in args))
        result = jax.tree.map(lambda a: a.reshape(*lengths, *a.shape[1:]), result)
        return result, jax.tree.map(lambda _: True, result)

    return single


def _whole(size: int, batched: Any, args: Any) -> tuple[jax.Array, ...]:
    return tuple(
        a if b else jnp.broadcast_to(a, (size, *a.shape))
        for a, b in zip(args, batched, strict=True)
    )


def qr_r(a: jax.Array) -> jax.Array:
    """R of A = Q R.

    Args:
      a: float[n, m], a single matrix.

    Returns:
      float[min(n, m), m], upper triangular. RᵀR = AᵀA.

    Raises:
      ValueError: not a matrix.
    """
    return _qr_r(_matrix("qr_r", a))


def svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U, σ, Vᵀ of A = U diag(σ) Vᵀ, with k = min(n, m).

    Args:
      a: float[n, m], a single matrix.

    Returns:
      float[n, k], float[k] in descending order, float[k, m].

    Raises:
      ValueError: not a matrix.
    """
    return _svd(_matrix("svd", a))


def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """λ, V of A = V diag(λ) Vᵀ.

    Args:
      a: float[n, n], a single symmetric matrix.

    Returns:
      float[n] in ascending order, float[n, n] with one eigenvector per column.

    Raises:
      ValueError: not a square matrix.
    """
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"eigh needs a matrix [n, n], got shape {list(a.shape)}")
    return _eigh(a)


def ridge(
    x: jax.Array, y: jax.Array, strengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Least squares with an L2 penalty of several strengths, in float64.

    W = argmin ‖X W − Y‖_F² + λ ν ‖W‖_F², X and Y centred, ν = ‖X‖_F² / D, as

        (XᵀX + λνI) W = XᵀY,  or  W = Xᵀ (XXᵀ + λνI)⁻¹ Y  where D > N.

    Products of X with itself need twice the digits, which float64 has: their error is
    ε‖X‖² = 2e-16 νD, far below λν. Decomposing X in float32 is as exact and takes four
    times as long.

    Args:
      x: float32[N, D].
      y: float32[N, K].
      strengths: float32[L], each λ > 0.

    Returns:
      W, float32[L, D, K], and b = mean(Y) − mean(X) W, float32[L, K].
    """
    return _ridge(x, y, strengths)


def _matrix(name: str, a: jax.Array) -> jax.Array:
    if a.ndim != 2:
        raise ValueError(
            f"{name} needs a single matrix [n, m], got shape {list(a.shape)}; use "
            "jax.vmap for several"
        )
    return a


_qr_r = one_at_a_time(lambda a: jnp.linalg.qr(a, mode="r"))
_svd = one_at_a_time(lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)))
_eigh = one_at_a_time(lambda a: tuple(jnp.linalg.eigh(a)))


@one_at_a_time
def _ridge(x, y, strengths):
    with jax.enable_x64(True):
        x, y, strengths = (a.astype(jnp.float64) for a in (x, y, strengths))
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        x, y = x - mean_x, y - mean_y  # a constant column is exactly 0
        dual = x.shape[0] < x.shape[1]
        gram = x @ x.T if dual else x.T @ x
        unit = jnp.trace(gram) / x.shape[1]
        unit = jnp.where(unit == 0, 1, unit)
        target = y if dual else x.T @ y

        def minimiser(strength):
            system = gram + strength * unit * jnp.eye(len(gram))
            solved = cho_solve(cho_factor(system), target)
            weights = x.T @ solved if dual else solved
            bias = mean_y - mean_x @ weights
            return weights.astype(jnp.float32), bias.astype(jnp.float32)

        return jax.lax.map(minimiser, strengths)
