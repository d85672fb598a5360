"""The contract suite: requirements for every method, as tests that a class inherits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import numpy as np
import optax

from jaxcl.contract import Strategy, strategy
from jaxcl.inputs import array_data, context
from jaxcl.tasks import after_task, before_task
from jaxcl.testing.loop import (
    Moment,
    examples,
    make_step,
    own_loop,
    parts,
    start,
    step_of,
)
from jaxcl.testing.problem import BATCH, small_problem
from jaxcl.training import protocol
from jaxcl.training.problem import Problem
from jaxcl.training.programs import Programs, make_programs
from jaxcl.training.protocol import EpochDone, TaskDone
from jaxcl.training.seeds import SeedMesh
from jaxcl.types import Setup


class StrategyContract:
    """Requirements for every method, as tests that pytest runs in a subclass.

    Attributes:
      factory: ``(setup, *, settings) -> Strategy``, as a staticmethod.
      settings: settings of the factory with which the method has an effect.
      neutral: settings with which a step is that of fine-tuning, or None.
      optimizer: the optimizer that the method is tested with.

    Example, in a test file:

        class TestL2(jaxcl.testing.StrategyContract):
            factory = staticmethod(l2)
            settings, neutral = {"strength": 3.0}, {"strength": 0.0}
    """

    factory: ClassVar[Callable[..., Strategy]]
    settings: ClassVar[Mapping[str, Any]] = {}
    neutral: ClassVar[Mapping[str, Any] | None] = None
    optimizer: ClassVar[optax.GradientTransformation] = optax.sgd(0.1)

    def test_the_state_tree_is_stable(self):
        """Structure, shapes and dtypes hold over steps and tasks, in one trace."""
        seen, error = _loop(type(self))
        for moment in seen:
            chex.assert_trees_all_equal_structs(seen[0].tree, moment.tree)
            chex.assert_trees_all_equal_shapes_and_dtypes(seen[0].tree, moment.tree)
        if error is not None:
            raise error
        assert seen[-1].finite, "the network is not finite at the end"

    def test_no_buffer_is_held_twice(self):
        """State has buffers of its own, so that a loop may donate it with the params.

        This is tested after `init` and after each task: a state that holds the
        parameters themselves cannot be donated together with them.
        """
        seen, error = _loop(type(self))
        for moment in seen:
            for where, other in moment.twice.items():
                raise AssertionError(f"{where} is the buffer of {other}; copy it")
        if error is not None:
            raise error

    def test_one_trace_for_three_tasks(self):
        """One compilation serves all tasks and all seeds."""
        for mode in ("map", "vmap"):
            traces = _run(type(self), mode).mesh.traces
            assert set(traces.values()) == {1}, f"traced more than once: {traces}"

    def test_vmapped_seeds_equal_a_loop(self):
        """The validation loss of each epoch and seed is equal within 1e-5."""
        losses = []
        for mode in ("map", "vmap"):
            events = _run(type(self), mode).events
            done = [e for e in events if isinstance(e, EpochDone)]
            losses.append([e.metrics.valid_loss for e in done])
        np.testing.assert_allclose(*losses, atol=1e-5)

    def test_a_neutral_setting_is_bp(self):
        """After a task has been consolidated, one step equals BP's within 1e-6."""
        if self.neutral is None:
            import pytest

            pytest.skip("no setting of this method is fine-tuning")
        setup, net, model_state = parts()
        x, y = examples()
        ours = type(self).factory(setup, **self.neutral)
        stepped = []
        for method in (ours, strategy()):
            params, opt_state, tx = start(method, self.optimizer, setup, net)
            params, opt_state = after_task(
                *(method, params, opt_state, array_data(x, y, 0)),
                task=0,
                model_state=model_state,
            )
            moved = jax.tree.map(lambda leaf: leaf + 0.01, net)
            data = array_data(x, y + 2, 1)
            cache = before_task(method, params, opt_state, data, task=1)
            when = {"step": 1, "cache": cache} | step_of(0)
            ctx = context(x[:BATCH], y[:BATCH] + 2, task=1, **when)
            step = jax.jit(make_step(method, tx, setup))
            stepped.append(step(params._replace(net=moved), opt_state, ctx)[0].net)
        chex.assert_trees_all_close(*stepped, rtol=1e-7, atol=1e-6)

    def test_a_run_survives_its_checkpoint(self, tmp_path):
        """A run stopped after task 2 and resumed ends bit for bit like a whole run."""
        unbroken = _run(type(self), "map")
        broken = unbroken.again(tmp_path)
        for event in broken:
            if isinstance(event, TaskDone) and event.task == 1:
                break
        broken.close()
        resumed = list(unbroken.again(tmp_path))
        for kind in (EpochDone, TaskDone):
            got, want = (_measured(of, kind) for of in (resumed, unbroken.events))
            assert len(got) < len(want), "the run began anew"
            chex.assert_trees_all_equal(got, want[-len(got) :])

    def _problem(self, **options) -> Problem:
        def make(setup: Setup) -> Strategy:
            return type(self).factory(setup, **self.settings)

        return small_problem(make, optimizer=self.optimizer, **options)


class _Run(NamedTuple):
    """A run of a suite's method over three seeds, and what is needed to repeat it."""

    problem: Problem
    mesh: SeedMesh
    programs: Programs
    events: tuple

    def again(self, checkpoints: Path) -> Generator:
        """The same run, already compiled, which saves its state."""
        return protocol.run(
            self.problem,
            checkpoints=checkpoints,
            mesh=self.mesh,
            programs=self.programs,
        )


@functools.cache
def _run(suite: type[StrategyContract], seed_mode: str) -> _Run:
    problem = suite()._problem(seed_mode=seed_mode)
    mesh = SeedMesh(len(problem.seeds), seed_mode)
    programs = make_programs(problem, mesh)
    events = tuple(protocol.run(problem, mesh=mesh, programs=programs))
    return _Run(problem, mesh, programs, events)


@functools.cache
def _loop(
    suite: type[StrategyContract],
) -> tuple[list[Moment], Exception | None]:
    return own_loop(lambda s: suite.factory(s, **suite.settings), suite.optimizer)


def _measured(events, kind: type) -> list:
    """The measurements of a run, without the seconds."""
    return [e._replace(seconds=0.0) for e in events if isinstance(e, kind)]
