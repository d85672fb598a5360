"""The contract every strategy is written against: values, pure functions, no `self`.

A strategy is a `Strategy`: a NamedTuple of pure functions over explicit state. The
state is always a traced argument, never an attribute: a jitted method that reads its
own fields keeps for ever what they held at its first trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

PyTree = Any
State = Any


class Batch(NamedTuple):
    """Examples of one step; rows that only pad the batch have weight 0."""

    x: jax.Array  # [B, ...] network input, float
    y: jax.Array  # int32[B] target among the K outputs
    task: jax.Array  # int32[B] task each example comes from
    weight: jax.Array  # float32[B] 1 for an example, 0 for padding
    index: jax.Array  # int32[B] position in the task's data; -1: not of it (replay)


class Params(NamedTuple):
    """What the optimizer trains."""

    net: PyTree  # the model's parameters
    aux: PyTree  # what the strategy trains beside it (HAT's embeddings), else {}


class Output(NamedTuple):
    """What a forward pass gave."""

    logits: jax.Array  # float[B, K], not masked
    model_state: PyTree  # e.g. running statistics after this pass
    taps: dict[str, jax.Array]  # layer name -> input of that layer


class Context(NamedTuple):
    """What a hook may know of the moment it is called in; arrays only."""

    task: jax.Array  # int32[] task in training, traced and shared by all seeds
    step: jax.Array  # int32[] step since the start of the task
    epoch: jax.Array  # int32[] of the task, from 0; −1 outside training
    epoch_progress: jax.Array  # float32[] (b - 1)/(B - 1) over the epoch's batches
    epoch_fraction: jax.Array  # float32[] share of the epoch's examples seen so far
    task_progress: jax.Array  # float32[] share of the task's longest schedule done
    key: jax.Array  # a typed key of this step's own
    batch: Batch
    model_state: PyTree
    cache: PyTree  # what `before_task` returned


class LayerSpec(NamedTuple):
    """One dense or convolutional layer, as `inspection.describe` found it."""

    name: str  # module path, "/"-joined; the key of `Output.taps`
    kind: str  # "dense" or "conv"
    path: tuple[str, ...]  # of the kernel in the params tree
    strides: tuple[int, int]
    padding: str  # "VALID" or "SAME"; dense: "VALID"
    window: tuple[int, int]  # (kh, kw); dense: (1, 1)
    d_in: int  # rows of the kernel as a matrix: kh * kw * channels
    n_out: int
    bias: bool
    feeds_on: tuple[str, ...] | None  # layers before it; () the input; None unknown
    refusal: str  # why methods that treat layers must refuse it, or ""
    positions: int = 1  # rows an example gives it: windows; dense on [B, D]: 1
    reads_input: bool = False  # its input is the network's, reshaped at most


class Codec(NamedTuple):
    """How a network input is kept in a memory: ``decode(encode(x)) == x`` on the data.

    An image in uint8 takes a quarter of its normalised float32.
    """

    encode: Callable[[jax.Array], jax.Array]  # float[B, ...] -> any dtype, same shape
    decode: Callable[[jax.Array], jax.Array]  # and back


def same(x: jax.Array) -> jax.Array:
    """What it is given: the codec, both ways, of inputs that are kept as they are."""
    return x


AS_IT_IS = Codec(same, same)


class NormSpec(NamedTuple):
    """One normalisation, as `inspection.describe_norms` found it."""

    name: str  # module path, "/"-joined
    kind: str  # one of `inspection.NORM_KINDS`
    path: tuple[str, ...]  # of its parameters in the params tree
    follows: str | None  # the layer whose output it reads; None: something else's


class Setup(NamedTuple):
    """What is fixed for a whole run and closed over by the hooks."""

    apply_fn: ApplyFn
    task_loss: TaskLoss
    layers: tuple[LayerSpec, ...]
    heads: tuple[tuple[str, ...], ...]  # path prefixes of the classifier in the params
    logit_mask: jax.Array  # bool[T, K] outputs in play for each task
    mask_by: str  # "example": row of the example's task; "task": of the current one
    num_tasks: int
    example: jax.ShapeDtypeStruct  # one batch of inputs
    mixes_examples: bool  # in evaluation an example's logits depend on its batch
    codec: Codec = AS_IT_IS  # how memories store inputs
    model_state: PyTree = ()  # shapes (`jax.ShapeDtypeStruct`) of running statistics
    norms: tuple[NormSpec, ...] = ()


class TaskData(NamedTuple):
    """One task's training examples, readable inside jit."""

    take: Callable[[jax.Array], Batch]  # int32[B] positions in [0, size) -> Batch
    size: jax.Array  # int32[] number of examples
    capacity: int  # static upper bound of size


ApplyFn = Callable[..., Output]
"""(net, model_state, x, task[B], key, train: bool) -> Output"""
TaskLoss = Callable[[jax.Array, Batch, jax.Array], jax.Array]
"""(logits[B, K], batch, current task) -> scalar"""
LossFn = Callable[[Params, Context], tuple[jax.Array, Output]]
"""A scalar to minimise and the forward pass it came from."""


class InitAux(Protocol):
    """Makes what the strategy trains beside the network, once per run."""

    def __call__(self, key: jax.Array, net: PyTree) -> PyTree: ...


class Init(Protocol):
    """Makes the state that a run starts from; it may not alias the parameters."""

    def __call__(self, params: Params) -> State: ...


class BeforeTask(Protocol):
    """Makes what the hooks read as ``ctx.cache``, at the start of every task.

    It is never checkpointed but made anew when a run resumes, in the middle of a task
    too: it may read only what training does not change.
    """

    def __call__(self, state: State, data: TaskData) -> PyTree: ...


class Forward(Protocol):
    """Wraps the model: gates, inputs projected in the backward pass."""

    def __call__(
        self, apply_fn: ApplyFn, state: State, aux: PyTree, *, ctx: Context
    ) -> ApplyFn: ...


class TransformLoss(Protocol):
    """Wraps the loss: penalties, replay."""

    def __call__(self, loss_fn: LossFn, state: State) -> LossFn: ...


class TransformGrads(Protocol):
    """An optax update function on the gradients, before the optimizer sees them."""

    def __call__(
        self, grads: Params, state: State, params: Params, *, ctx: Context, out: Output
    ) -> tuple[Params, State]: ...


class TransformUpdates(Protocol):
    """An optax update function on the updates: the last word on what moves."""

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
    """Chooses the running statistics after a step, from those before and after it."""

    def __call__(
        self, new: PyTree, state: State, *, old: PyTree, ctx: Context
    ) -> PyTree: ...


class InPlay(Protocol):
    """Outputs that a step trains beside those of the batch's tasks: bool[K] or bool[].

    By replay or a reference gradient; those that the step's gradient reaches need not
    be named.
    """

    def __call__(self, state: State, *, ctx: Context) -> jax.Array: ...


class Validation(Protocol):
    """What the method charges for beside errors, added to the validation loss."""

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

    ``grads`` and ``updates`` take and return what an optax update function does: the
    subject, the state, the parameters, then keywords.

    Attributes:
      init_aux: `InitAux`, ``(key, net) -> aux``.
      init: `Init`, ``(params) -> state``.
      before_task: `BeforeTask`, ``(state, data) -> cache``.
      forward: `Forward`, ``(apply_fn, state, aux, *, ctx) -> apply_fn``.
      loss: `TransformLoss`, ``(loss_fn, state) -> loss_fn``.
      grads: `TransformGrads`, ``(grads, state, params, *, ctx, out)``
        ``-> (grads, state)``.
      updates: `TransformUpdates`, ``(updates, state, params, *, grads, ctx, out)``
        ``-> (updates, state)``. Outputs that are not in play stand still already.
      in_play: `InPlay`, ``(state, *, ctx) -> bool[K]``.
      model_state: `TransformModelState`, ``(new, state, *, old, ctx) -> model_state``.
      validation: `Validation`, ``(params, state, *, task) -> scalar``.
      after_task: `AfterTask`,
        ``(params, state, *, data, model_state, task, key) -> (params, state)``.
      report: `Report`, ``(state) -> {quantity: {layer: scalar}}``. The names may not
        depend on the state.
      needs_linear: whether the method protects earlier tasks only under an optimizer
        whose updates stay in the subspace that its gradients lie in: SGD, momentum.
        Judged where the optimizer is first seen, outside jit.
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
    validation: Validation
    after_task: AfterTask
    report: Report
    needs_linear: bool = False


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
    validation: Validation | None = None,
    after_task: AfterTask | None = None,
    report: Report | None = None,
    needs_linear: bool = False,
) -> Strategy:
    """Builds a `Strategy`; a hook that is not given does nothing.

    Returns:
      A `Strategy` whose missing hooks pass their subject through unchanged, so that
      ``strategy()`` is plain fine-tuning with empty state ``()``.
    """

    def same_params(params, state, **extra):
        return params, state

    return Strategy(
        init_aux=init_aux or (lambda key, net: {}),
        init=init or (lambda params: ()),
        before_task=before_task or (lambda state, data: ()),
        forward=forward or (lambda apply_fn, state, aux, *, ctx: apply_fn),
        loss=loss or (lambda loss_fn, state: loss_fn),
        grads=grads or (lambda grads, state, params, **extra: (grads, state)),
        updates=updates or (lambda updates, state, params, **extra: (updates, state)),
        in_play=in_play or (lambda state, *, ctx: jnp.zeros((), bool)),
        model_state=model_state or (lambda new, state, *, old, ctx: new),
        validation=validation or (lambda params, state, *, task: jnp.zeros(())),
        after_task=after_task or same_params,
        report=report or (lambda state: {}),
        needs_linear=needs_linear,
    )
