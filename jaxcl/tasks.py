"""The beginning and the end of a task, in your own training loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxcl import schema
from jaxcl.checks import require, require_range
from jaxcl.contract import Strategy
from jaxcl.hooks import OptState
from jaxcl.kinds import require_pair
from jaxcl.schema import Natural
from jaxcl.types import Params, PyTree, Setup, TaskData

_END = 2**32 - 1  # no step has this number: `jaxcl.context` folds in the step's


def before_task(
    strategy: Strategy,
    params: Params,
    opt_state: OptState,
    data: TaskData,
    *,
    task: int | jax.Array,
    model_state: PyTree | None = None,
    setup: Setup | None = None,
) -> PyTree:
    """Makes the ``cache`` that the steps of a task read; pass it to `jaxcl.context`.

    For example GPM's projectors, or the features of a frozen extractor for each of the
    task's examples. A step finds an example's entry by ``context(index=...)``.
    Without a cache every step computes it again; PCA, whose components it holds,
    refuses to train without it.

    Args:
      strategy: any `Strategy`.
      params: before the task's first step.
      opt_state: of `transform_optimizer`'s transformation.
      data: the task's training examples; see `jaxcl.array_data`.
      task: counted from 0.
      model_state: the model's running statistics, by default none.
      setup: if given, the task is checked against its T.

    Raises:
      ValueError: the data are of another task, or the task is out of range; neither is
        checked inside jit.
    """
    _require_task(data, task, setup)
    return (strategy.beside or strategy).before_task(
        params,
        opt_state.strategy,
        data=data,
        model_state={} if model_state is None else model_state,
        task=jnp.asarray(task, jnp.int32),
    )


def after_task(
    strategy: Strategy,
    params: Params,
    opt_state: OptState,
    data: TaskData,
    *,
    task: int | jax.Array,
    seed: int | jax.Array = 0,
    key: jax.Array | None = None,
    model_state: PyTree | None = None,
    optimizer: optax.GradientTransformation | None = None,
    setup: Setup | None = None,
) -> tuple[Params, OptState]:
    """Ends a task in your own training loop.

    Under jit one compilation serves all tasks, with the arrays as arguments:
    ``jax.jit(lambda p, s, x, y, t: after_task(method, p, s, array_data(x, y, t),
    task=t))``. Called as it is, some methods compile anew each time.

    Args:
      strategy: any `Strategy`.
      params: after the task's last step.
      opt_state: of `transform_optimizer`'s transformation.
      data: the task's training examples; see `jaxcl.array_data`.
      task: counted from 0.
      seed: of the run; the default key is drawn from it.
      key: a typed key for random draws (examples of a Fisher, of a memory); by default
        one that differs between seeds and tasks.
      model_state: the model's running statistics, by default none.
      optimizer: the one given to `transform_optimizer`, if it is to begin anew with
        the next task, as in this project's runs. By default its state is unchanged;
        momentum then carries steps of the old task, which nothing projects, into the
        new one: GPM with momentum protects old tasks only where it begins anew.
      setup: if given, the task is checked against its T.

    Returns:
      The parameters and the state that the next task starts from.

    Raises:
      ValueError: the data are of another task, or the task is out of range; neither is
        checked inside jit.
    """
    _require_task(data, task, setup)
    made = strategy.after_task(
        params,
        opt_state.strategy,
        data=data,
        model_state={} if model_state is None else model_state,
        task=jnp.asarray(task, jnp.int32),
        key=_key_of(seed, task) if key is None else key,
    )
    require_pair("after_task", made, params, opt_state.strategy)
    params, state = made
    ended = opt_state._replace(strategy=state)
    if optimizer is not None:  # nothing that it had gathered is left
        reached = jax.tree.map(jnp.zeros_like, opt_state.reached)
        ended = ended._replace(inner=optimizer.init(params), reached=reached)
    return params, ended


def _key_of(seed: int | jax.Array, task: int | jax.Array) -> jax.Array:
    schema.require("seed", seed, int)
    of_task = jax.random.fold_in(jax.random.key(seed), task)
    return jax.random.fold_in(of_task, _END)


def _require_task(data: TaskData, task: int | jax.Array, setup: Setup | None) -> None:
    """Refuses a task out of range, and data of another one; tracers pass."""
    schema.require("task", task, Natural)
    if setup is not None:
        require_range("task", task, setup.num_tasks)
    if isinstance(task, Tracer):
        return
    of = data.take(jnp.zeros((1,), jnp.int32)).task[0]
    require(
        task == of,
        f"task must be that of the data, got {task} and data of task {of}: "
        "jaxcl.array_data(x, y, task)",
    )
