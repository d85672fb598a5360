"""A user's own training loop, which the contract suite runs and inspects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.contract import Strategy
from jaxcl.hooks import OptState, init_params, transform_optimizer
from jaxcl.inputs import array_data, context
from jaxcl.nn import capture
from jaxcl.objective import transform_loss
from jaxcl.ops import trees
from jaxcl.tasks import after_task, before_task
from jaxcl.testing.problem import BATCH, TASKS, small_problem
from jaxcl.training.problem import make_setup
from jaxcl.types import Params, PyTree, Setup


class Moment(NamedTuple):
    """The data of a user's own loop after a step or a task, or at the start."""

    tree: PyTree  # the parameters and the optimizer's state, as shapes and dtypes
    finite: bool  # whether the network's parameters are
    twice: dict[str, str]  # a leaf -> an earlier leaf with the same buffer


def step_of(i: int) -> dict[str, float]:
    """What the step i of a task of two says of itself, for methods that read it."""
    return {
        "epoch": 0,
        "epoch_progress": float(i),
        "epoch_fraction": i / 2,
        "task_progress": i / 2,
    }


def own_loop(
    make_method: Callable[[Setup], Strategy], optimizer: optax.GradientTransformation
) -> tuple[list[Moment], Exception | None]:
    """Runs three tasks of two jitted steps that donate all their arguments.

    Returns:
      The `Moment` at the start, after each step and after each task; and the error that
      ended the loop early, if any: a second trace, or a buffer that was donated twice.
    """
    seen: list[Moment] = []
    try:
        for params, opt_state in _run(make_method, optimizer):
            seen.append(_moment(params, opt_state))
    except Exception as error:
        return seen, error
    return seen, None


def _run(
    make_method: Callable[[Setup], Strategy], optimizer: optax.GradientTransformation
) -> Iterator[tuple[Params, OptState]]:
    setup, net, model_state = parts()
    method = make_method(setup)
    params, opt_state, tx = start(method, optimizer, setup, net)
    chex.clear_trace_counter()  # the counter adds up over all tests
    counted = chex.assert_max_traces(make_step(method, tx, setup), n=1)
    step = jax.jit(counted, donate_argnums=(0, 1))
    x, y = examples()
    yield params, opt_state
    for task in range(TASKS):
        data = array_data(x, y + 2 * task, task)
        cache = before_task(
            *(method, params, opt_state, data), task=task, model_state=model_state
        )
        for i in range(2):
            rows = slice(i * BATCH, (i + 1) * BATCH)
            when = step_of(i)
            ctx = context(x[rows], y[rows] + 2 * task, task=task, cache=cache, **when)
            params, opt_state = step(params, opt_state, ctx)
            yield params, opt_state
        params, opt_state = after_task(
            method, params, opt_state, data, task=task, model_state=model_state
        )
        yield params, opt_state


def _moment(params: Params, opt_state: OptState) -> Moment:
    held, twice = {}, {}
    for path, leaf in jax.tree.leaves_with_path((params, opt_state.strategy)):
        where, pointer = jax.tree_util.keystr(path), _pointer(leaf)
        if pointer is not None:
            first = held.setdefault(pointer, where)
            if first != where:
                twice[where] = first
    leaves = jax.tree.leaves(params.net)
    return Moment(
        tree=jax.tree.map(jax.typeof, (params, opt_state)),
        finite=all(np.isfinite(leaf).all() for leaf in map(np.asarray, leaves)),
        twice=twice,
    )


def parts() -> tuple[Setup, PyTree, PyTree]:
    """Setup, network and running statistics of the small problem."""
    problem = small_problem()
    setup = make_setup(problem.model, problem.stream, BATCH)
    init = capture.init_fn(problem.model, setup.example)
    return setup, *init(jax.random.key(0))


def examples() -> tuple[jax.Array, jax.Array]:
    """24 inputs and their targets for task 0; each later task adds 2 to the targets."""
    return jax.random.normal(jax.random.key(1), (24, 4, 4, 1)), jnp.arange(24) % 2


def start(
    method: Strategy,
    optimizer: optax.GradientTransformation,
    setup: Setup,
    net: PyTree,
) -> tuple[Params, OptState, optax.GradientTransformationExtraArgs]:
    tx = transform_optimizer(method, optimizer, setup)
    params = init_params(method, jax.random.key(2), net)
    return params, cast(OptState, tx.init(params)), tx


def make_step(
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
    """A leaf's address in memory; None for a leaf without elements, or for a key."""
    has_one = leaf.size and not trees.is_key(leaf)
    return leaf.unsafe_buffer_pointer() if has_one else None
