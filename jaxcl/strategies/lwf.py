"""Learning without forgetting: the last network teaches the next one its outputs.

Li and Hoiem, Learning without forgetting, ECCV 2016, https://arxiv.org/abs/1606.09282.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require
from jaxcl.contract import Strategy, strategy
from jaxcl.heads import shares_all_outputs
from jaxcl.losses import distillation, soft_divergence
from jaxcl.ops.trees import tree_copy
from jaxcl.schema import NonNegative, Positive, checked
from jaxcl.types import PyTree, Setup


class LwFState(NamedTuple):
    """The network as it was when the last task ended."""

    net: PyTree
    model_state: PyTree


class OldOutputs(NamedTuple):
    """Which outputs to distil, in groups with a softmax of their own.

    asked: bool[G, K], the outputs in the network's softmax of each group.
    given: bool[G, K], the outputs in the last network's softmax, within `asked`.
    factor: the weight of the divergence, besides λ.
    """

    asked: jax.Array
    given: jax.Array
    factor: jax.Array


def old_outputs(setup: Setup, task: jax.Array) -> OldOutputs:
    """Old outputs that the last network can give, for the task in training, int32[].

    Task-incremental: the head of each earlier task. Domain-incremental: the one set of
    outputs, counted once for each earlier task. Class-incremental: all classes before
    this task's, counted likewise, among all classes so far. See `lwf`.
    """
    heads, earlier = setup.logit_mask, task.astype(jnp.float32)
    if setup.mask_by == "task":
        asked = heads[task] & (task > 0)
        given = heads[jnp.maximum(task - 1, 0)] & asked
        return OldOutputs(asked[None], given[None], earlier)
    if shares_all_outputs(setup):
        asked = heads[:1] & (task > 0)
        return OldOutputs(asked, asked, earlier)
    asked = heads & (jnp.arange(heads.shape[0]) < task)[:, None]
    return OldOutputs(asked, asked, jnp.ones(()))


@checked
def lwf(
    setup: Setup, *, strength: NonNegative = 1.0, temperature: Positive = 2.0
) -> Strategy:
    """Keeps the outputs for earlier tasks unchanged, on the new task's inputs.

    L = L_task + λ Σ_{t' < t} τ² mean_x KL(p_{t'}(x) ‖ q_{t'}(x))

    with q_{t'} the network's and p_{t'} the last network's softmax, at temperature τ,
    over the outputs of task t' (task-incremental) or the shared outputs
    (domain-incremental). Class-incremental: q is over all classes so far, and p over
    those before this task's, so that the new classes have probability 0 in it. Each
    earlier task weighs as much as the one in training.

    Args:
      setup: the run's `Setup`.
      strength: λ ≥ 0; 0 is fine-tuning.
      temperature: τ > 0.

    Returns:
      A `Strategy` with an `LwFState`. The last network runs in evaluation mode, and
      bare: beside a member of a chain that changes what the network computes (HAT's
      gates, PCA) its outputs are not those of the network that learned.

    Raises:
      ValueError: an argument out of range, with its value; a normalisation per task.

    Differs from the paper and its code, which first train the new head alone and have
    no τ²: their λ is λ τ² here. Differs from van de Ven's code, without τ² since 2022,
    where the old answers weigh as here, but class-incremental as much as one task;
    before, at task t from 1, (1 − 1/t) τ², and the new loss 1/t.
    """

    for norm in setup.norms:
        require(
            norm.kind != "batch_per_task",
            f"lwf cannot keep the outputs of earlier tasks under {norm.name!r}, which "
            "normalises each task by statistics of its own: on the new task's inputs "
            "it would keep other outputs than those that are tested; use norm 'none', "
            "'batch', 'group' or 'layer'",
        )

    def init(params):
        # No statistics yet: before the first task's end the teacher has no weight.
        blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), setup.model_state)
        return LwFState(tree_copy(params.net), blank)

    def loss(loss_fn, state):
        def distilled(params, ctx):
            batch = ctx.batch
            key = jax.random.fold_in(ctx.key, 1)  # not read: no dropout
            teacher = setup.apply_fn(
                state.net, state.model_state, batch.x, batch.task, key, False
            )
            old = old_outputs(setup, ctx.task)

            def divergence(logits, target):
                return old.factor * soft_divergence(
                    logits,
                    target,
                    temperature=temperature,
                    mask=old.asked,
                    weight=batch.weight,
                    target_mask=old.given,
                )

            return distillation(
                loss_fn,
                target=teacher.logits,
                divergence=divergence,
                strength=strength,
            )(params, ctx)

        return distilled

    def in_play(state, *, ctx):
        # At a task's first step the two networks agree: there is no gradient yet.
        return (strength > 0) & old_outputs(setup, ctx.task).asked.any(0)

    def after_task(params, state, *, data, model_state, task, key):
        return params, LwFState(tree_copy(params.net), tree_copy(model_state))

    return strategy(init=init, loss=loss, in_play=in_play, after_task=after_task)
