"""Experience replay and dark experience replay: past examples in every batch.

Chaudhry et al., On tiny episodic memories in continual learning, 2019,
https://arxiv.org/abs/1902.10486. Buzzega et al., Dark experience for general continual
learning: a strong, simple baseline, NeurIPS 2020, https://arxiv.org/abs/2004.07211.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require_told
from jaxcl.contract import Strategy, strategy
from jaxcl.heads import outputs_of
from jaxcl.losses import distillation, squared_error
from jaxcl.ops import memory
from jaxcl.schema import Count, NonNegative, OneOf, checked
from jaxcl.types import Batch, Context, Setup

# The network uses the step's key; replay uses keys with these folded into it.
KEEP, DRAW = 1, 2
Offer = Annotated[str, OneOf(("step", "first_epoch"))]


class ReplayState(NamedTuple):
    """A reservoir, and the examples that the next step replays from it.

    They are drawn as soon as a batch is stored, not when they are used: a loop that
    writes first and then reads updates the memory in place; one that reads first copies
    it at every step.
    """

    memory: memory.Memory
    drawn: tuple[memory.Sample, ...]  # weight 0 until something is stored


def _draw(store: memory.Memory, keys, n: int, setup: Setup) -> ReplayState:
    return ReplayState(store, tuple(memory.sample(store, k, n, setup) for k in keys))


def _nothing(store: memory.Memory, draws: int, n: int, setup: Setup) -> ReplayState:
    """The state before anything is stored: draws of weight 0, for any key."""
    return _draw(store, jax.random.split(jax.random.key(0), draws), n, setup)


def _offered(offer: str, ctx: Context) -> Batch:
    """A step's batch for the reservoir, not augmented; weight 0 if not to be seen."""
    batch = ctx.batch
    if ctx.original is not None:
        batch = batch._replace(x=ctx.original)
    if offer == "step":
        return batch
    first = require_told(ctx.epoch, "offer='first_epoch'", "epoch") == 0
    return batch._replace(weight=jnp.where(first, batch.weight, 0))


def _rows(out, n: int):
    """The output on a batch's own rows, for readers that know only this batch."""
    return out._replace(logits=out.logits[:n])


@checked
def er(
    setup: Setup,
    *,
    capacity: Count = 500,
    batch_size: Count = 10,
    offer: Offer = "step",
) -> Strategy:
    """Trains on each batch together with examples drawn from a reservoir.

    L = mean over the batch's B and the n drawn examples of the task's loss, in one
    forward pass; then the batch is offered to the reservoir. While the reservoir is
    empty, at the first step, L is the batch's own loss.

    Args:
      setup: the run's `Setup`.
      capacity: of the reservoir, over all tasks.
      batch_size: n, examples drawn per step.
      offer: what the reservoir is offered. "step": every step's batch, so an example
        comes once per epoch and the reservoir may hold copies; "first_epoch": the
        batches of a task's first epoch, so each example comes once and none is held
        twice. With one epoch both are the same.

    Returns:
      A `Strategy` with a `ReplayState`.

    Raises:
      ValueError: an argument below 1, an unknown offer, with its value.

    Where the stream augments, the reservoir holds the original images, and what is
    drawn is augmented anew. Differs from Mammoth's code, whose offer is "step", in
    drawing with repeats, and in the outputs, as `derpp`. The ``out.taps`` that later
    hooks see also hold the rows of the drawn examples, which are part of the gradient.
    """

    def init(params):
        return _nothing(memory.empty(setup, capacity), 1, batch_size, setup)

    def loss(loss_fn, state):
        def replayed(params, ctx):
            batch = memory.with_replay(ctx.batch, state.drawn[0].batch)
            value, out = loss_fn(params, ctx._replace(batch=batch))
            return value, _rows(out, ctx.batch.y.shape[0])

        return replayed

    def in_play(state, *, ctx):
        return outputs_of(setup, state.drawn[0].batch, ctx.task)

    def grads(grads, state, params, *, ctx, out):
        key = jax.random.fold_in(ctx.key, KEEP)
        store = memory.reservoir_add(
            state.memory, key, _offered(offer, ctx), setup.codec
        )
        key = jax.random.fold_in(ctx.key, DRAW)
        return grads, _draw(store, [key], batch_size, setup)

    return strategy(init=init, loss=loss, grads=grads, in_play=in_play)


@checked
def derpp(
    setup: Setup,
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 0.5,
    capacity: Count = 500,
    batch_size: Count = 10,
    offer: Offer = "step",
) -> Strategy:
    """Replays past examples with the network's outputs from when they were stored.

    L = L_task(batch) + α mean ‖z(x') − z'‖² + β L_task(x'', y'')

    with two independent draws of n examples from the reservoir, the mean over examples
    and all K outputs, and z' the logits of the step in which the example came, stored
    with it. One forward pass serves all three terms. Where the stream augments, z' are
    of the image as that step saw it; the original is stored, and augmented when drawn.

    Args:
      setup: the run's `Setup`.
      alpha: α ≥ 0.
      beta: β ≥ 0; 0 is DER. Both 0 is fine-tuning.
      capacity: of the reservoir, over all tasks.
      batch_size: n, examples drawn per step for either term.
      offer: what the reservoir is offered. "step": every step's batch, so an example
        comes once per epoch and the reservoir may hold copies; "first_epoch": the
        batches of a task's first epoch, so each example comes once and none is held
        twice. Stored logits are then those of the first epoch.

    Returns:
      A `Strategy` with a `ReplayState` whose memory holds logits [capacity, K].

    Raises:
      ValueError: an argument out of range, named with its value.

    Differs from Mammoth's code, whose offer is "step", in drawing with repeats, and in
    the outputs: there the loss is over all K from the first task, also where the task
    is told, which is read off the same run at test time; here over those of the tasks
    so far, and over the task's own where it is told. That code computes the three terms
    in passes of their own, which under BatchNorm have statistics of their own. The
    paper writes ‖·‖² without the mean over outputs; α is on the code's scale, that of
    the mean.
    """

    def init(params):
        kind = jnp.result_type(float)
        logits = jax.ShapeDtypeStruct(setup.logit_mask.shape[1:], kind)
        store = memory.empty(setup, capacity, logits)
        return _nothing(store, 2, batch_size, setup)

    def loss(loss_fn, state):
        def replayed(params, ctx):
            dark, seen = state.drawn
            # At weight 0 the drawn rows pass through the network and the losses nested
            # below without adding to them: a penalty counts once.
            rows = memory.with_replay(ctx.batch, dark.batch, seen.batch)
            n = ctx.batch.y.shape[0]
            rows = rows._replace(weight=rows.weight.at[n:].set(0))
            matched = distillation(
                loss_fn,
                target=dark.extra,
                strength=alpha,
                divergence=lambda z, old: squared_error(z, old, dark.batch.weight),
                of=lambda out: out.logits[n : n + batch_size],
            )
            value, out = matched(params, ctx._replace(batch=rows))
            again = setup.task_loss(out.logits[n + batch_size :], seen.batch, ctx.task)
            return value + beta * again, _rows(out, n)

        return replayed

    def in_play(state, *, ctx):
        dark, seen = state.drawn
        matched = (alpha > 0) & (dark.batch.weight > 0).any()  # on all K outputs
        return matched | ((beta > 0) & outputs_of(setup, seen.batch, ctx.task))

    def grads(grads, state, params, *, ctx, out):
        key = jax.random.fold_in(ctx.key, KEEP)
        store = memory.reservoir_add(
            state.memory, key, _offered(offer, ctx), setup.codec, out.logits
        )
        keys = jax.random.split(jax.random.fold_in(ctx.key, DRAW))
        return grads, _draw(store, keys, batch_size, setup)

    return strategy(init=init, loss=loss, grads=grads, in_play=in_play)
