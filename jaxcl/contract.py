"""The contract every strategy is written against: values, pure functions, no `self`.

A strategy is a `Strategy`: a NamedTuple of pure functions over explicit state. The
state is always a traced argument, never an attribute: a jitted method that reads its
own fields would always see their values at the first trace.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxcl.kinds import require_hooks
from jaxcl.types import (
    ApplyFn,
    Context,
    LossFn,
    Output,
    Params,
    PyTree,
    State,
    TaskData,
)


class InitAux(Protocol):
    """Makes the parameters that a strategy trains beside the network, once per run."""

    def __call__(self, key: jax.Array, net: PyTree) -> PyTree: ...


class Init(Protocol):
    """Makes the state that a run starts from; it may not alias the parameters."""

    def __call__(self, params: Params) -> State: ...


class BeforeTask(Protocol):
    """Makes the ``ctx.cache`` that the hooks read, at the start of every task.

    It is never checkpointed, but made again when a run resumes, also inside a task: it
    may depend only on values that training does not change.
    """

    def __call__(
        self,
        params: Params,
        state: State,
        *,
        data: TaskData,
        model_state: PyTree,
        task: jax.Array,
    ) -> PyTree: ...


class Forward(Protocol):
    """Wraps the model: gates, inputs projected in the backward pass."""

    def __call__(
        self, apply_fn: ApplyFn, state: State, aux: PyTree, *, ctx: Context
    ) -> ApplyFn: ...


class TransformLoss(Protocol):
    """Wraps the loss of the step's examples: replay, distillation.

    A wrapper that changes inputs or adds examples sets their ``batch.index`` to -1:
    what was computed of the task's data before the task is not valid for them.
    """

    def __call__(self, loss_fn: LossFn, state: State) -> LossFn: ...


class TransformGrads(Protocol):
    """An optax update function on the gradients, before the optimizer sees them."""

    def __call__(
        self, grads: Params, state: State, params: Params, *, ctx: Context, out: Output
    ) -> tuple[Params, State]: ...


class TransformUpdates(Protocol):
    """An optax update function on the updates; it decides last what moves."""

    def __call__(
        self,
        updates: Params,
        state: State,
        params: Params,
        *,
        grads: Params,
        ctx: Context,
        out: Output,
    ) -> tuple[Params, State]: ...


class TransformModelState(Protocol):
    """Chooses a step's running statistics, from those before and after its pass."""

    def __call__(
        self, new: PyTree, state: State, *, old: PyTree, ctx: Context
    ) -> PyTree: ...


class InPlay(Protocol):
    """Outputs that a step trains beside those of the batch's tasks: bool[K] or bool[].

    Those that the step's gradient reaches need not be named.
    """

    def __call__(self, state: State, *, ctx: Context) -> jax.Array: ...


class Penalty(Protocol):
    """A term of the training loss, or of the validation loss, that reads no example."""

    def __call__(
        self, params: Params, state: State, *, task: jax.Array
    ) -> jax.Array: ...


class AfterTask(Protocol):
    """Consolidates the selected parameters, once at the end of every task."""

    def __call__(
        self,
        params: Params,
        state: State,
        *,
        data: TaskData,
        model_state: PyTree,
        task: jax.Array,
        key: jax.Array,
    ) -> tuple[Params, State]: ...


class Report(Protocol):
    """Scalars to keep beside the accuracies: ``{quantity: {layer: float32[]}}``."""

    def __call__(self, state: State) -> dict[str, dict[str, jax.Array]]: ...


class Strategy(NamedTuple):
    """A continual-learning method as pure functions; see `strategy` for the defaults.

    Attributes:
      init_aux: `InitAux`, ``(key, net) -> aux``.
      init: `Init`, ``(params) -> state``.
      before_task: `BeforeTask`,
        ``(params, state, *, data, model_state, task) -> cache``.
      forward: `Forward`, ``(apply_fn, state, aux, *, ctx) -> apply_fn``.
      loss: `TransformLoss`, ``(loss_fn, state) -> loss_fn``.
      grads: `TransformGrads`, ``(grads, state, params, *, ctx, out)``
        ``-> (grads, state)``.
      updates: `TransformUpdates`, ``(updates, state, params, *, grads, ctx, out)``
        ``-> (updates, state)``. Outputs not in play have updates of 0.
      in_play: `InPlay`, ``(state, *, ctx) -> bool[K]``.
      model_state: `TransformModelState`, ``(new, state, *, old, ctx) -> model_state``.
      penalty: `Penalty`, ``(params, state, *, task) -> scalar``, added to the loss of
        every step. Only its gradient is taken there; its value is told once per epoch.
      validation: `Penalty`, of the same form, added to the validation loss.
      after_task: `AfterTask`,
        ``(params, state, *, data, model_state, task, key) -> (params, state)``.
      report: `Report`, ``(state) -> {quantity: {layer: scalar}}``. The names may not
        depend on the state.
      needs_linear: whether earlier tasks are protected only under an optimizer whose
        updates stay in the subspace of its gradients: SGD, momentum.
      needs_every_step: whether each update has to come from its own step's gradient, as
        not under `optax.MultiSteps` and `optax.apply_every`.
      needs_every_task: whether the method must be trained on the first task, or see the
        end of each. Joint training on all tasks at once has neither.
      beside: another strategy that stands for this one beside others: in a
        `jaxcl.chain`, in joint training, and in a loop that may be anyone's. Others add
        to a gradient after the backward pass, and rows of other tasks to a batch.
    """

    init_aux: InitAux
    init: Init
    before_task: BeforeTask
    forward: Forward
    loss: TransformLoss
    grads: TransformGrads
    updates: TransformUpdates
    in_play: InPlay
    model_state: TransformModelState
    penalty: Penalty
    validation: Penalty
    after_task: AfterTask
    report: Report
    needs_linear: bool = False
    needs_every_step: bool = False
    needs_every_task: bool = False
    beside: Strategy | None = None


def no_penalty(params: Params, state: State, *, task: jax.Array) -> jax.Array:
    """0, of a method that has no penalty."""
    return jnp.zeros(())


def strategy(
    *,
    init_aux: InitAux | None = None,
    init: Init | None = None,
    before_task: BeforeTask | None = None,
    forward: Forward | None = None,
    loss: TransformLoss | None = None,
    grads: TransformGrads | None = None,
    updates: TransformUpdates | None = None,
    in_play: InPlay | None = None,
    model_state: TransformModelState | None = None,
    penalty: Penalty | None = None,
    validation: Penalty | None = None,
    after_task: AfterTask | None = None,
    report: Report | None = None,
    needs_linear: bool = False,
    needs_every_step: bool = False,
    needs_every_task: bool = False,
    beside: Strategy | None = None,
) -> Strategy:
    """Builds a `Strategy`; a hook that is not given does nothing.

    Returns:
      A `Strategy`; ``strategy()`` is plain fine-tuning with empty state ``()``.

    Raises:
      ValueError: a hook that cannot be called.
    """
    require_hooks(locals())
    return Strategy(
        init_aux=init_aux or (lambda key, net: {}),
        init=init or (lambda params: ()),
        before_task=before_task or (lambda params, state, **extra: ()),
        forward=forward or (lambda apply_fn, state, aux, *, ctx: apply_fn),
        loss=loss or (lambda loss_fn, state: loss_fn),
        grads=grads or (lambda grads, state, params, **extra: (grads, state)),
        updates=updates or (lambda updates, state, params, **extra: (updates, state)),
        in_play=in_play or (lambda state, *, ctx: jnp.zeros((), bool)),
        model_state=model_state or (lambda new, state, *, old, ctx: new),
        penalty=penalty or no_penalty,
        validation=validation or no_penalty,
        after_task=after_task or (lambda params, state, **extra: (params, state)),
        report=report or (lambda state: {}),
        needs_linear=needs_linear,
        needs_every_step=needs_every_step,
        needs_every_task=needs_every_task,
        beside=beside,
    )
