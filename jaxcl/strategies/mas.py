"""Memory aware synapses: holds the weights that the outputs are sensitive to.

Aljundi et al., Memory aware synapses: learning what (not) to forget, ECCV 2018,
https://arxiv.org/abs/1711.09601.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.contract import Strategy, strategy
from jaxcl.losses import quadratic
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.ops.trees import anchored, zeros_wide
from jaxcl.schema import Count, NonNegative, checked
from jaxcl.strategies._per_example import make_pass
from jaxcl.types import PyTree, Setup, TaskData


class MASState(NamedTuple):
    """The penalty λ Σᵢ importanceᵢ (θᵢ − anchorᵢ)²."""

    importance: PyTree  # like net, Ω
    anchor: PyTree  # like net, θ at the end of the last task


def sensitivity(
    setup: Setup,
    net: PyTree,
    model_state: PyTree,
    data: TaskData,
    task: jax.Array,
    key: jax.Array,
    *,
    samples: int,
    chunk: int,
) -> PyTree:
    """Ω = 1/n Σ_x |∂‖f(x)‖²/∂θ|, per example, over the outputs f in play.

    The network is in evaluation mode. No label is read.

    Args:
      setup: gives the apply function and the logit mask.
      net: parameters.
      model_state: running statistics.
      data: the task's examples.
      task: int32[] the current task.
      key: chooses the examples.
      samples: at most this many examples; all if the task has fewer.
      chunk: examples in one backward pass; a convolution holds the gradient of each.

    Returns:
      A tree like ``net``.
    """
    order_key, net_key = jax.random.split(key)
    order = shuffled(order_key, data.size, data.capacity)
    n = jnp.minimum(samples, data.size)
    apply_fn = data.forward(setup.apply_fn)

    run = make_pass(setup, apply_fn, net, model_state, net_key, jnp.abs)

    def body(i, total):
        position, weight = batch_positions(order, i, chunk, n)
        batch = data.take(position)
        made = run(batch)
        rows = batch.task if setup.mask_by == "example" else task[None]
        # The gradient of ‖f‖² with respect to f.
        slope = jnp.where(setup.logit_mask[rows], 2 * made.logits, 0)
        return jax.tree.map(jnp.add, total, made.sums(slope, weight))

    zeros = zeros_wide(net)
    total = jax.lax.fori_loop(0, (n + chunk - 1) // chunk, body, zeros)
    return jax.tree.map(lambda t: t / n, total)


@checked
def mas(
    setup: Setup, *, strength: NonNegative, samples: Count = 2000, chunk: Count = 16
) -> Strategy:
    """Penalises moving weights that earlier tasks' outputs are sensitive to.

    L = L_task + λ Σᵢ Ωᵢ (θᵢ − θ*ᵢ)²
    at a task's end:   Ωᵢ ← Ωᵢ + mean_x |∂‖f(x)‖²/∂θᵢ|,   θ* ← θ

    Args:
      setup: the run's `Setup`.
      strength: λ ≥ 0; 0 is fine-tuning.
      samples: examples per task for Ω.
      chunk: examples in one backward pass; a convolution holds the gradient of each.

    Returns:
      A `Strategy` with a `MASState`.

    Raises:
      ValueError: an argument out of range, named with its value.

    Differs from several codes, A-GEM's among them, in taking the absolute value per
    example, as the paper does, not of a batch's mean gradient. f are the outputs in
    play: other tasks' heads do not belong to this task's function.
    """

    def init(params):
        return MASState(zeros_wide(params.net), anchored(params.net))

    def penalty(params, state, *, task):
        return quadratic(
            params.net,
            anchor=state.anchor,
            importance=state.importance,
            strength=2 * strength,  # `quadratic` halves it
        )

    def after_task(params, state, *, data, model_state, task, key):
        new = sensitivity(
            setup,
            params.net,
            model_state,
            data,
            task,
            key,
            samples=samples,
            chunk=chunk,
        )
        importance = jax.tree.map(jnp.add, state.importance, new)
        return params, MASState(importance, anchored(params.net))

    return strategy(init=init, penalty=penalty, after_task=after_task)
