"""Averaged gradient episodic memory: no step against the gradient on a memory.

Chaudhry et al., Efficient lifelong learning with A-GEM, ICLR 2019,
https://arxiv.org/abs/1812.00420.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.checks import require
from jaxcl.contract import Strategy, strategy
from jaxcl.heads import outputs_of
from jaxcl.ops import memory, sampling
from jaxcl.schema import Count, checked
from jaxcl.transforms import project_conflicting
from jaxcl.types import Batch, Context, PyTree, Setup

# The network uses the step's key on the batch; other uses fold these numbers into it.
DRAW, NETWORK = 1, 2

PER_CLASS = 25


def classes_per_task(setup: Setup) -> int:
    """The largest number of classes in a task."""
    if setup.num_classes:
        return max(setup.num_classes)
    mask = np.asarray(setup.logit_mask)
    if setup.mask_by == "task":  # cumulative: a row also holds earlier tasks
        mask = mask & ~np.concatenate([np.zeros_like(mask[:1]), mask[:-1]])
    return int(mask.sum(axis=1).max())


def drawn(setup: Setup, batch_size: int, state: memory.Memory, ctx: Context) -> Batch:
    """The examples on which a step's reference gradient is computed."""
    key = jax.random.fold_in(ctx.key, DRAW)
    return memory.filled(memory.sample(state, key, batch_size, setup).batch, ctx.batch)


def reference_gradient(
    setup: Setup, net: PyTree, batch_size: int, state: memory.Memory, ctx: Context
) -> PyTree:
    """Gradient of the mean loss on examples drawn from all past tasks.

    Args:
      setup: gives the network and the task's loss.
      net: parameters.
      batch_size: examples to draw.
      state: the memory.
      ctx: the step's `Context`.

    Returns:
      A tree like ``net``; zero while the memory is empty.
    """
    past = drawn(setup, batch_size, state, ctx)
    net_key = jax.random.fold_in(ctx.key, NETWORK)

    def loss(net):
        out = setup.apply_fn(net, ctx.model_state, past.x, past.task, net_key, True)
        return setup.task_loss(out.logits, past, ctx.task)

    return jax.grad(loss)(net)


@checked
def agem(
    setup: Setup,
    *,
    per_class: Count | None = PER_CLASS,
    per_task: Count | None = None,
    batch_size: Count = 256,
) -> Strategy:
    """Projects a gradient that would raise the mean loss on the memory.

    With g the network's gradient on the batch, as one vector, and r that on
    ``batch_size`` examples drawn from the memory of all past tasks:

        g ← g − (⟨g, r⟩/⟨r, r⟩) r   if ⟨g, r⟩ < 0,   else g

    At a task's end some of its examples, drawn at random, go into the memory; if the
    stream augments, drawn ones are augmented as the batch's. During
    the first task the memory is empty, and steps are those of fine-tuning. The outputs
    of the drawn examples are in play whether or not the two gradients conflict:
    momentum and weight decay keep moving them.

    Args:
      setup: the run's `Setup`.
      per_class: examples kept of each class of a task, by default as in the paper.
      per_task: examples kept of each task, whatever their classes, in place of the
        default. A task or class that has fewer gives all it has.
      batch_size: examples per step for the reference gradient.

    Returns:
      A `Strategy` whose state is a `memory.Memory` for num_tasks times the most
      examples that a task can give.

    Raises:
      ValueError: an argument out of range, named with its value.

    Differs from the official code: that keeps the last examples of each class, this one
    random ones; that draws the reference batch without repeats, this one with repeats;
    that draws from the past tasks' examples only when there are more than a batch and
    uses all of them before, this one always draws a batch; that computes r without
    dropout, this one with it, as in the batch's step. Parameters that a strategy
    trains beside the network (HAT's embeddings) are not changed, and the reference
    batch passes through the bare network.
    """
    if per_task is not None:
        require(
            per_class in (None, PER_CLASS),
            "agem: only one of per_class and per_task may be given, got "
            f"{per_class} and {per_task}",
        )
        per_class, block = None, per_task
    elif per_class is None:
        raise ValueError("agem: per_class=None needs per_task, got None")
    else:
        block = per_class * classes_per_task(setup)
    project = project_conflicting()

    def init(params):
        return memory.empty(setup, setup.num_tasks * block)

    def grads(grads, state, params, *, ctx, out):
        r = reference_gradient(setup, params.net, batch_size, state, ctx)
        net, _ = project.update(grads.net, project.init(grads.net), reference=r)
        return grads._replace(net=net), state

    def in_play(state, *, ctx):
        return outputs_of(setup, drawn(setup, batch_size, state, ctx), ctx.task)

    def after_task(params, state, *, data, model_state, task, key):
        rows = min(block, data.capacity)
        position, keep = sampling.choose(
            data, key, per_task=per_task, per_class=per_class, most=rows
        )
        weight = keep[:rows].astype(jnp.float32)
        batch = data.take(position[:rows])._replace(weight=weight)
        return params, memory.append(state, batch, setup.codec)

    return strategy(init=init, grads=grads, in_play=in_play, after_task=after_task)
