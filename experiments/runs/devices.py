"""What devices can do in a second, and the least time of a step on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import machine
from .arithmetic import Work


class Device(NamedTuple):
    """What a device can do in a second."""

    name: str
    flops: float
    bytes: float
    kernel: float  # seconds from one small kernel to the next
    source: str


# A kernel of a recorded CUDA graph, or of one TPU program, starts a microsecond or two
# after the one before; nobody publishes a figure, so this one is an assumption.
KERNEL = 1.5e-6
ACCELERATORS = (
    Device(
        "H100 SXM",
        494.7e12,
        3.35e12,
        KERNEL,
        "NVIDIA's data sheet: TF32 without sparsity, as JAX multiplies float32; "
        "the time per kernel is an assumption",
    ),
    Device(
        "TPU v5e",
        197e12,
        819e9,
        KERNEL,
        "Google Cloud's page: bfloat16, as JAX multiplies float32; "
        "the time per kernel is an assumption",
    ),
)


class Bound(NamedTuple):
    """The least seconds of a step of all seeds, and what they are spent on."""

    seconds: float
    by: str


def bound(of: Work, on: Device) -> Bound:
    """max(flops / F, bytes / B, kernels · k), and which of the three it is."""
    times = {
        "arithmetic": of.flops / on.flops,
        "memory": of.bytes / on.bytes,
        "kernels": of.kernels * on.kernel,
    }
    by = max(times, key=times.__getitem__)
    return Bound(times[by], by)


def this_machine() -> Device:
    """This machine's limits, all its devices at once, each the best of several tries.

    Bytes are those of its caches, where small networks live: a limit for all sizes.
    """
    side, long, chain = 1024, 2**16, 2000

    @jax.jit
    def sums(x):
        return jax.lax.fori_loop(0, chain, lambda _, x: x + 1.0, x)

    @jax.jit
    def kernels(x):
        # A sum cannot be joined with the next one: each is a kernel of its own.
        return jax.lax.fori_loop(0, chain, lambda _, x: x + x.sum() * 1e-9, x)

    def per_second(work: float, run: Callable[[Any], Any], shape: tuple) -> float:
        arrays = [jax.device_put(jnp.ones(shape), d) for d in jax.devices()]
        return work * len(arrays) / _best(lambda: [run(x) for x in arrays])

    product = jax.jit(lambda a: a @ a)
    return Device(
        machine.device(),
        per_second(2 * side**3, product, (side, side)),
        per_second(chain * 2 * 4 * long, sums, (long,)),
        len(jax.devices()) / per_second(chain, kernels, (8,)),
        "measured by this command; bytes are those of its caches",
    )


def _best(run: Callable[[], Any], tries: int = 9) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)
