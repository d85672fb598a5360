"""The contract suite: what every method owes, as tests that a class inherits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.contract import Strategy, strategy
from jaxcl.hooks import (
    OptState,
    after_task,
    init_params,
    transform_loss,
    transform_optimizer,
)
from jaxcl.inputs import array_data, context
from jaxcl.nn import capture
from jaxcl.testing.problem import BATCH, TASKS, small_problem
from jaxcl.training import protocol
from jaxcl.training.problem import Problem, make_setup
from jaxcl.training.protocol import EpochDone, TaskDone
from jaxcl.training.seeds import SeedMesh
from jaxcl.types import Params, PyTree, Setup


class StrategyContract:
    """What every method owes, as tests that pytest runs in a subclass.

    Attributes:
      factory: ``(setup, *, settings) -> Strategy``, as a staticmethod.
      settings: of the factory, at which the method does something.
      neutral: settings at which a step is fine-tuning's, or None if there are none.
      optimizer: that the method is tested with.

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
        first, net = None, None
        for params, opt_state in self._loop():
            tree, net = (params, opt_state), params.net
            first = first or jax.tree.map(jax.typeof, tree)
            chex.assert_trees_all_equal_structs(first, tree)
            chex.assert_trees_all_equal_shapes_and_dtypes(first, tree)
        chex.assert_tree_all_finite(net)

    def test_no_buffer_is_held_twice(self):
        """State has buffers of its own, so that a loop may donate it with the params.

        After `init` and after each task: a state that holds the parameters themselves
        cannot be donated together with them.
        """
        for params, opt_state in self._loop():
            held: dict[int, str] = {}
            for path, leaf in jax.tree.leaves_with_path((params, opt_state.strategy)):
                where, pointer = jax.tree_util.keystr(path), _pointer(leaf)
                if pointer is not None:
                    twice = held.setdefault(pointer, where)
                    assert twice == where, f"{where} is the buffer of {twice}; copy it"

    def test_one_trace_for_three_tasks(self):
        """One compilation serves all tasks and all seeds."""
        for mode in ("map", "vmap"):
            _, traces = _run(type(self), mode)
            assert set(traces.values()) == {1}, f"traced more than once: {traces}"

    def test_vmapped_seeds_equal_a_loop(self):
        """The validation loss of each epoch and seed, within 1e-5."""
        losses = []
        for mode in ("map", "vmap"):
            events, _ = _run(type(self), mode)
            done = [e for e in events if isinstance(e, EpochDone)]
            losses.append([e.metrics.valid_loss for e in done])
        np.testing.assert_allclose(*losses, atol=1e-5)

    def test_a_neutral_setting_is_bp(self):
        """After a task has been consolidated, one step equals BP's within 1e-6."""
        if self.neutral is None:
            import pytest

            pytest.skip("no setting of this method is fine-tuning")
        setup, net, model_state = _parts()
        x, y = _examples()
        ours = type(self).factory(setup, **self.neutral)
        stepped = []
        for method in (ours, strategy()):
            params, opt_state, tx = _start(method, self.optimizer, setup, net)
            params, opt_state = after_task(
                *(method, params, opt_state, array_data(x, y, 0)),
                task=0,
                model_state=model_state,
            )
            moved = jax.tree.map(lambda leaf: leaf + 0.01, net)
            data = array_data(x, y + 2, 1)
            cache = method.before_task(opt_state.strategy, data)
            ctx = context(x[:BATCH], y[:BATCH] + 2, task=1, step=1, cache=cache)
            step = jax.jit(_make_step(method, tx, setup))
            stepped.append(step(params._replace(net=moved), opt_state, ctx)[0].net)
        chex.assert_trees_all_close(*stepped, rtol=1e-7, atol=1e-6)

    def test_a_run_survives_its_checkpoint(self, tmp_path):
        """A run broken off after task 2 ends bit for bit as one that is not."""

        def events(checkpoints=None):
            return protocol.run(self._problem(seeds=(0,)), checkpoints=checkpoints)

        broken = events(tmp_path)
        for event in broken:
            if isinstance(event, TaskDone) and event.task == 1:
                break
        broken.close()
        resumed, unbroken = list(events(tmp_path)), list(events())
        for kind in (EpochDone, TaskDone):
            got, want = (_measured(of, kind) for of in (resumed, unbroken))
            assert len(got) < len(want), "the run began anew"
            chex.assert_trees_all_equal(got, want[-len(got) :])

    def _problem(self, **options) -> Problem:
        def make(setup: Setup) -> Strategy:
            return type(self).factory(setup, **self.settings)

        return small_problem(make, optimizer=self.optimizer, **options)

    def _loop(self) -> Iterator[tuple[Params, OptState]]:
        """Somebody's own loop over three tasks, whose jitted step donates all it has.

        Yields what it holds at the start, after each step and after each task.
        """
        setup, net, model_state = _parts()
        method = type(self).factory(setup, **self.settings)
        params, opt_state, tx = _start(method, self.optimizer, setup, net)
        chex.clear_trace_counter()  # it counts over all tests
        counted = chex.assert_max_traces(_make_step(method, tx, setup), n=1)
        step = jax.jit(counted, donate_argnums=(0, 1))
        x, y = _examples()
        yield params, opt_state
        for task in range(TASKS):
            data = array_data(x, y + 2 * task, task)
            cache = method.before_task(opt_state.strategy, data)
            for i in range(2):
                rows = slice(i * BATCH, (i + 1) * BATCH)
                ctx = context(x[rows], y[rows] + 2 * task, task=task, cache=cache)
                params, opt_state = step(params, opt_state, ctx)
                yield params, opt_state
            params, opt_state = after_task(
                method, params, opt_state, data, task=task, model_state=model_state
            )
            yield params, opt_state


@functools.cache
def _run(suite: type[StrategyContract], seed_mode: str):
    """The events of a suite's run over three seeds, and how often each was traced."""
    problem = suite()._problem(seed_mode=seed_mode)
    mesh = SeedMesh(len(problem.seeds), seed_mode)
    return tuple(protocol.run(problem, mesh=mesh)), dict(mesh.traces)


def _measured(events, kind: type) -> list:
    """What a run measured, without the seconds."""
    return [e._replace(seconds=0.0) for e in events if isinstance(e, kind)]


def _parts() -> tuple[Setup, PyTree, PyTree]:
    """Setup, network and running statistics of the small problem."""
    problem = small_problem()
    setup = make_setup(problem.model, problem.stream, BATCH)
    init = capture.init_fn(problem.model, setup.example)
    return setup, *init(jax.random.key(0))


def _examples() -> tuple[jax.Array, jax.Array]:
    """24 inputs of task 0, and their targets; a later task's are two more each."""
    return jax.random.normal(jax.random.key(1), (24, 4, 4, 1)), jnp.arange(24) % 2


def _start(
    method: Strategy,
    optimizer: optax.GradientTransformation,
    setup: Setup,
    net: PyTree,
) -> tuple[Params, OptState, optax.GradientTransformationExtraArgs]:
    tx = transform_optimizer(method, optimizer, setup)
    params = init_params(method, jax.random.key(2), net)
    return params, cast(OptState, tx.init(params)), tx


def _make_step(
    method: Strategy, tx: optax.GradientTransformationExtraArgs, setup: Setup
) -> Callable[..., tuple[Params, OptState]]:
    gradient = jax.grad(transform_loss(method, setup), has_aux=True)

    def step(params, opt_state, ctx):
        grads, out = gradient(params, opt_state.strategy, ctx)
        updates, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
        new = cast(Params, optax.apply_updates(params, updates))
        return new, cast(OptState, opt_state)

    return step


def _pointer(leaf: jax.Array) -> int | None:
    """Where a leaf lies in memory; None of one that has no elements, or is a key."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf.unsafe_buffer_pointer() if leaf.size and not is_key else None
