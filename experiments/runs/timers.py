"""The bench's timers: steps of this project, ends of tasks, a convolution."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl import strategies
from jaxcl.data.scenarios import make_stream
from jaxcl.ops import convolution
from jaxcl.training.optimizers import make_optimizer
from jaxcl.training.plan import Plan
from jaxcl.training.problem import PerSeed, Problem, per_seed
from jaxcl.training.programs import Programs, make_programs
from jaxcl.training.seeds import SeedMesh
from jaxcl.training.state import SeedState

from .cases import Case, source

Timer = Callable[[], float]
"""Runs something once and gives its seconds per step and seed."""


class Ready(NamedTuple):
    """A run in its third task."""

    programs: Programs
    mine: PerSeed
    seed: SeedState
    cache: Any
    shared: tuple  # the arguments of a task's programs
    of_epoch: tuple  # the arguments of an epoch's program


def jax_step(
    case: Case, row: str, num_seeds: int, seed_mode: str, clip: float | None = None
) -> Timer:
    """Readies a run at its third task; each call times an epoch of it.

    Returns:
      A function that gives seconds per step and seed.
    """
    settings = case.methods[row]
    problem = problem_of(case, row, settings, num_seeds, seed_mode, clip)
    ready = _third_task(problem, case.steps)
    held = {"seed": ready.seed}

    def epoch() -> None:
        given = (ready.mine, ready.cache)
        held["seed"], metrics = ready.programs.epoch(
            held["seed"], given, ready.of_epoch
        )
        jax.block_until_ready((held["seed"], metrics))

    return _timer(epoch, case.steps * num_seeds)


def jax_end(case: Case, what: str, num_seeds: int, seed_mode: str) -> Timer:
    """Readies a run at the end of its third task; each call ends that task once more.

    Returns:
      A function that gives seconds per seed and minibatch of the examples read there.
      It compares with a step of BP: one gradient over as many examples.
    """
    end = case.ends[what]
    problem = problem_of(case, end.row, end.settings, num_seeds, seed_mode)
    ready = _third_task(problem, case.steps)
    held = {"seed": ready.seed}

    def once() -> None:
        held["seed"] = ready.programs.end(held["seed"], ready.mine, ready.shared)
        jax.block_until_ready(held["seed"])

    return _timer(once, end.examples / case.batch * num_seeds)


def _timer(run: Callable[[], None], units: float) -> Timer:
    def timed() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / units

    return timed


def problem_of(
    case: Case,
    row: str,
    settings: dict,
    num_seeds: int,
    seed_mode: str,
    clip: float | None = None,
) -> Problem:
    """A method on a case's network and images, in three tasks."""
    seeds = tuple(range(num_seeds))
    name = strategies.strategy_name(strategies.method(row))
    stream = make_stream(
        source(case), seeds, kind=case.stream, scenario=case.scenario, num_tasks=3
    )
    return Problem(
        model=case.model(stream.num_outputs),
        stream=stream,
        seeds=seeds,
        make_strategy=partial(strategies.make, name, settings=settings),
        optimizer=make_optimizer("sgd", 0.01, clip=clip),
        plan=Plan(epochs=1, batch_size=case.batch),
        seed_mode=seed_mode,
    )


def _third_task(problem: Problem, steps: int) -> Ready:
    """Runs two tasks and one epoch, of so many steps, of the third."""
    where = SeedMesh(len(problem.seeds), problem.seed_mode)
    programs = make_programs(problem, where)
    mine, base = where.spread(per_seed(problem)), where.share(problem.stream.base)

    def number(value: int) -> jax.Array:
        return where.share(np.int32(value))

    seed = programs.init((), mine, ())
    cache: Any = ()
    shared: tuple = ()
    of_epoch: tuple = ()
    for task in range(3):
        shared = (base, number(task))
        seed = programs.begin(seed, (mine, where.real), ())
        cache = programs.before_task(seed, mine, shared)
        of_epoch = (*shared, number(0), number(steps))
        seed, _ = programs.epoch(seed, (mine, cache), of_epoch)
        if task < 2:
            seed = programs.end(seed, mine, shared)
    jax.block_until_ready(seed)
    return Ready(programs, mine, seed, cache, shared, of_epoch)


def convolution_step(batched_gemm: bool, num_seeds: int = 5) -> Timer:
    """Forward and backward of a convolution with a kernel per seed, all at once.

    `jax.vmap` turns the convolution of `lax` into a grouped convolution, and ours into
    a batched matrix product.
    """
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (num_seeds, 64, 14, 14, 64))
    kernel = jax.random.normal(keys[1], (num_seeds, 3, 3, 64, 128))

    def lax_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=layout
        )

    conv = convolution.convolve if batched_gemm else lax_conv

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (conv(x, kernel) ** 2).sum()

    step = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))
    jax.block_until_ready(step(x, kernel))

    def timed() -> float:
        start = time.perf_counter()
        jax.block_until_ready([step(x, kernel) for _ in range(5)])
        return (time.perf_counter() - start) / (5 * num_seeds)

    return timed
