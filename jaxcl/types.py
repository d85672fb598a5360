"""The contract every strategy is written against: values, pure functions, no `self`.

A strategy is a `Strategy`: a NamedTuple of pure functions over explicit state. The
state is always a traced argument, never an attribute: a jitted method that reads its
own fields keeps for ever what they held at its first trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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
    cache: PyTree  # what `prepare` returned


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


class Strategy(NamedTuple):
    """A continual-learning method as pure functions; see `strategy` for the defaults.

    Attributes:
      init: ``(key, net) -> (aux, state)``.
      prepare: ``(state, data) -> cache`` at a task's start; reaches the hooks as
        ``ctx.cache``. Never checkpointed but made anew on resume, in the middle of a
        task too: it may read only state that training does not change.
      forward: ``(state, aux, apply_fn, ctx) -> apply_fn``. Gates, projected backward.
      loss: ``(state, loss_fn) -> loss_fn``. Penalties, replay.
      grads: ``(state, grads, params, ctx, out) -> (grads, state)`` before optax.
      updates: ``(state, updates, grads, params, ctx, out) -> (updates, state)`` after
        optax and the learning rate's decay: the last word on what moves. Outputs that
        are not in play stand still already.
      in_play: ``(state, ctx) -> bool[K]``, or a bool[] for all alike: the outputs that
        the step trains beside those of the batch's own tasks, by replay or a reference
        gradient. Those that the step's gradient reaches need not be named.
      model_state: ``(state, old, new, ctx) -> model_state``.
      validation: ``(state, params, ctx) -> scalar``, added to each epoch's validation
        loss, which patience and best weights may follow: what the method charges for
        beside errors. The context is of no batch; it has the task in training.
      after_task: ``(state, params, model_state, ctx, data) -> (params, state)`` with
        the selected parameters, once at a task's end.
      report: ``(state) -> dict[str, scalar]`` after each task, to be kept beside the
        accuracies: for methods that use a network up, the share of each layer's space
        that is taken, named by the layer. The names may not depend on the state.
      check: ``(optimizer) -> None`` once before anything is traced; warns of, or
        refuses, an optimizer under which the method does not hold what it promises.
    """

    init: Callable[..., tuple[PyTree, State]]
    prepare: Callable[..., PyTree]
    forward: Callable[..., ApplyFn]
    loss: Callable[..., LossFn]
    grads: Callable[..., tuple[PyTree, State]]
    updates: Callable[..., tuple[PyTree, State]]
    in_play: Callable[[State, Context], jax.Array]
    model_state: Callable[..., PyTree]
    validation: Callable[..., jax.Array]
    after_task: Callable[..., tuple[Params, State]]
    report: Callable[[State], dict[str, jax.Array]]
    check: Callable[[optax.GradientTransformation], None]


def strategy(
    *,
    init: Callable[..., Any] | None = None,
    prepare: Callable[..., Any] | None = None,
    forward: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    grads: Callable[..., Any] | None = None,
    updates: Callable[..., Any] | None = None,
    in_play: Callable[..., Any] | None = None,
    model_state: Callable[..., Any] | None = None,
    validation: Callable[..., Any] | None = None,
    after_task: Callable[..., Any] | None = None,
    report: Callable[..., Any] | None = None,
    check: Callable[..., Any] | None = None,
) -> Strategy:
    """Builds a `Strategy`; a hook that is not given does nothing.

    Returns:
      A `Strategy` whose missing hooks pass their subject through unchanged, so that
      ``strategy()`` is plain fine-tuning with empty state ``()``.
    """
    return Strategy(
        init=init or (lambda key, net: ({}, ())),
        prepare=prepare or (lambda state, data: ()),
        forward=forward or (lambda state, aux, apply_fn, ctx: apply_fn),
        loss=loss or (lambda state, loss_fn: loss_fn),
        grads=grads or (lambda state, g, params, ctx, out: (g, state)),
        updates=updates or (lambda state, u, g, params, ctx, out: (u, state)),
        in_play=in_play or (lambda state, ctx: jnp.zeros((), bool)),
        model_state=model_state or (lambda state, old, new, ctx: new),
        validation=validation or (lambda state, params, ctx: jnp.zeros(())),
        after_task=after_task or (lambda state, params, ms, ctx, data: (params, state)),
        report=report or (lambda state: {}),
        check=check or (lambda optimizer: None),
    )
