"""The compiled programs: the trainer's functions of one seed, over all seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.training.problem import (
    PerSeed,
    Problem,
    init_of,
    per_seed,
    setup_of,
    strategy_for,
)
from jaxcl.training.seeds import SeedMesh
from jaxcl.training.trainer import Trainer, make_trainer


class Programs(NamedTuple):
    """Compiled functions of all seeds, each ``(state, per seed, shared) -> result``.

    ``mine`` is a `PerSeed`, ``base`` the stream's `Base`, ``task``, ``epoch`` and
    ``longest`` are int32[], ``real`` is bool[] and False for padding.
    """

    init: Callable[..., Any]  # ((), mine, ()) -> seed
    begin: Callable[..., Any]  # (seed, (mine, real), ()) -> seed
    before_task: Callable[..., Any]  # (seed, mine, (base, task)) -> cache
    epoch: Callable[..., Any]  # (seed, (mine, cache), (base, task, epoch, longest))
    end: Callable[..., Any]  # (seed, mine, (base, task)) -> seed
    evaluate: Callable[..., Any]  # (seed, mine, (base, task, bound)) -> accuracies [T]
    report: Callable[..., Any]  # (seed, mine, ()) -> quantity -> layer -> scalar


def make_programs(problem: Problem, mesh: SeedMesh) -> Programs:
    """Compiles the trainer's functions over all seeds.

    Args:
      problem: the problem to train.
      mesh: where the seeds run.

    Returns:
      The `Programs`. Each is traced once for any number of tasks.
    """
    stream, plan, joint = problem.stream, problem.plan, problem.joint
    if problem.joint_once:  # no task came before the only training
        plan = plan._replace(decay_per_task=1.0)
    setup = setup_of(problem)
    init_model = init_of(problem)
    validates = bool(stream.capacity("valid"))

    def build(settings: dict[str, jax.Array]) -> Trainer:
        return make_trainer(
            setup,
            strategy_for(problem, setup, **settings),
            problem.optimizer,
            plan,
            init_model,
            masked=mesh.mode == "vmap",
        )

    same = None if problem.settings else build({})

    def trainer(mine: PerSeed) -> Trainer:
        return same or build(mine.settings)

    def key(mine: PerSeed, task):
        # Stream 0 of a seed is its initialisation, stream t + 1 its task t.
        return jax.random.fold_in(jax.random.key(mine.seed), task + 1)

    def init(_, mine, shared):
        return trainer(mine).init(key(mine, -1))

    def begin(seed, given, shared):
        mine, real = given
        return trainer(mine).begin(seed, real, mine.rate)

    def before_task(seed, mine, shared):
        base, task = shared
        data = stream.view(base, mine.data, "train", task, joint)
        return trainer(mine).before_task(seed, data, task)

    def epoch(seed, given, shared):
        (mine, cache), (base, task, number, longest) = given, shared
        return trainer(mine).epoch(
            seed,
            cache,
            stream.view(base, mine.data, "train", task, joint),
            stream.view(base, mine.data, "valid", task, joint) if validates else None,
            task,
            number,
            jax.random.fold_in(key(mine, task), 0),
            longest,
        )

    def end(seed, mine, shared):
        base, task = shared
        data = stream.view(base, mine.data, "train", task, joint)
        end_key = jax.random.fold_in(key(mine, task), 1)
        return trainer(mine).end(seed, data, task, end_key)

    def evaluate(seed, mine, shared):
        base, current, bound = shared

        def on(task):
            data = stream.view(base, mine.data, problem.measure, task)
            return trainer(mine).evaluate(seed, data, current)[0]

        def known(task):
            nothing = jnp.full((), jnp.nan, jnp.float32)
            return jax.lax.cond(task < bound, on, lambda task: nothing, task)

        whole = problem.measure_tasks == "all"
        return jax.lax.map(on if whole else known, jnp.arange(stream.num_tasks))

    def report(seed, mine, shared):
        return trainer(mine).report(seed)

    over = mesh.over_seeds
    return Programs(
        init=over(init, "init"),
        begin=over(begin, "begin", donate=True),
        before_task=over(before_task, "before_task"),
        epoch=over(epoch, "epoch", donate=True),
        end=over(end, "end", donate=True),
        evaluate=over(evaluate, "evaluate"),
        report=over(report, "report"),
    )


def can_trace(problem: Problem) -> bool:
    """Whether the strategy works with its `Problem.settings` traced.

    A setting that determines a shape, a branch or a loop must be a number: runs that
    differ in it cannot share a compilation.
    """
    try:
        trace(problem)
    except TypeError:  # JAX's errors about tracers are of this kind
        return False
    return True


def trace(problem: Problem) -> None:
    """Traces a task of a run, including its strategy's hooks; computes nothing."""
    mesh = SeedMesh(len(problem.seeds), problem.seed_mode)
    programs = make_programs(problem, mesh)
    mine, base = mesh.spread(per_seed(problem)), problem.stream.base
    zero = np.int32(0)
    seed = jax.eval_shape(programs.init, (), mine, ())
    seed = jax.eval_shape(programs.begin, seed, (mine, mesh.real), ())
    cache = jax.eval_shape(programs.before_task, seed, mine, (base, zero))
    of_task = (base, zero, zero, zero)
    seed, _ = jax.eval_shape(programs.epoch, seed, (mine, cache), of_task)
    seed = jax.eval_shape(programs.end, seed, mine, (base, zero))
    jax.eval_shape(programs.evaluate, seed, mine, (base, zero, zero))
    jax.eval_shape(programs.report, seed, mine, ())
