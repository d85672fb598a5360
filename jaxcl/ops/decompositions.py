"""QR, SVD and eigenvalues of one matrix, safe on a CPU that is split into devices.

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

    @single.def_vmap
    def rule(size, batched, *args):
        whole = tuple(
            a if b else jnp.broadcast_to(a, (size, *a.shape))
            for a, b in zip(args, batched, strict=True)
        )
        result = jax.lax.platform_dependent(
            *whole,
            cpu=lambda *args: jax.lax.map(lambda one: single(*one), args),
            default=jax.vmap(fn),
        )
        return result, jax.tree.map(lambda _: True, result)

    return single


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
