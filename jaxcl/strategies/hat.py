"""Hard attention to the task: a gate for each unit and task, learned with the weights.

Serrà, Surís, Miron and Karatzoglou, Overcoming catastrophic forgetting with hard
attention to the task, ICML 2018, https://arxiv.org/abs/1801.01423.

The arithmetic is in `jaxcl.ops.gates`, `jaxcl.losses.gate_sparsity`,
`jaxcl.transforms.mask_updates` and `jaxcl.transforms.compensate`.
"""

from __future__ import annotations

import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require_told
from jaxcl.contract import Strategy, strategy
from jaxcl.losses import gate_sparsity
from jaxcl.nn.capture import scale_units
from jaxcl.ops.gates import DERIVATIVES, anneal, clamp, gate
from jaxcl.ops.trees import leaf_names
from jaxcl.schema import NonNegative, OneOf, Positive, checked
from jaxcl.strategies._units import (
    Used,
    gate_places,
    is_head,
    mask_rules,
    refuse,
    require_declared,
    require_rules,
)
from jaxcl.transforms import compensate, mask_updates
from jaxcl.types import Params, PyTree, Setup

PROGRESS = ("batches", "examples")


class HATState(NamedTuple):
    """What past tasks have taken; the keys are layer names."""

    used: Used  # float32[C] the highest gate any past task has put on a unit
    shared: dict[str, jax.Array]  # float32[] share of the layer the last task reused
    at_clamp: dict[str, jax.Array]  # float32[] share of its embeddings at ±bound


@checked
def hat(
    setup: Setup,
    *,
    s_max: Positive = 400.0,
    strength: NonNegative = 0.75,
    bound: Positive = 6.0,
    derivative: Annotated[str, OneOf(DERIVATIVES)] = "float32",
    epoch_progress: Annotated[str, OneOf(PROGRESS)] = "batches",
    refuse_shared_norm: bool = True,
) -> Strategy:
    """Gives each task units of its own and protects the weights between used units.

    In task t each unit's output is multiplied by its gate a = σ(s e_t), s annealed from
    1/s_max to s_max over each epoch; at evaluation s = s_max, and the gates are those
    of each example's own task. So they are in training for rows of past tasks, which a
    replaying method adds in a chain. With u = max_{t' < t} a_{t'} over past tasks and
    m_ij = 1 − min(u_i, u_j) of the weight from unit i to unit j,

      L = L_task + λ Σ a (1 − u) / Σ (1 − u)                    over all layers jointly
      Δθ_ij = m_ij · Δθ_ij of the optimizer;  a bias and a first layer have 1 − u_j
      ∂L/∂e ← ∂L/∂e · (s_max/s) (cosh(clip(s e, ±50)) + 1)/(cosh(e) + 1);  |e| ≤ bound

    Only the task's row of the embeddings moves, and only the task's columns of the
    head (in a chain also those of replayed rows). The validation loss has the same
    regulariser, with the gates at s_max.

    Gates sit on the layer's own output. There they commute with what follows the layer:
    a ≥ 0, so that relu(a z) = a relu(z), and likewise for pooling by maximum or mean
    and for dropout. An activation must map 0 to 0, or a closed unit would still act
    through weights that later tasks may change. Where branches are added up (the skip
    connections of a ResNet) each branch has gates of its own, and the channel of the
    sum counts as used if any branch's is: the layers that read it have u_i = max over
    branches. A normalisation that mixes units (group, layer) has gates before it, which
    keeps units of later tasks out of its statistics, and after it, which closes what
    its shift opens; its scale and shift are held like a bias. One BatchNorm per task,
    or one with the batch's own statistics (examples of one task, in evaluation too),
    has gates after it only: it treats each unit separately, and would undo a gate
    before it.

    Args:
      setup: the run's `Setup`. Needs ``layers`` with known wiring, ``heads``, and
        outputs that no two tasks share.
      s_max: the slope of the gates at the end of an epoch and at evaluation, > 0.
      strength: λ ≥ 0, the price of units that are still free.
      bound: embeddings are kept within ±bound, > 0.
      derivative: of the gates, "float32" or "exact"; see `jaxcl.ops.gates.gate`.
      epoch_progress: what s follows: "batches", (b − 1)/(B − 1) for batch b of B, which
        reaches s_max at the epoch's end, or "examples", the share of the epoch's
        examples that came before the batch.
      refuse_shared_norm: False allows a BatchNorm whose statistics all tasks share.
        With it HAT forgets: the setting is there to measure this.

    Returns:
      A `Strategy` with float32 embeddings [T, C] per layer as aux and an `HATState`. It
      reports, by layer, "taken", the share of units taken so far (its growth is what
      the task claimed), "shared", how much the task used of the units taken before, and
      "at_clamp", the share of the task's embeddings that ended at ±bound. Shares are
      mean gates.

    Raises:
      ValueError: an argument out of range, or a setup HAT cannot protect, named. In
        hooks called outside jit, a task that was not declared.

    Differs from the official code: the mask multiplies updates, not gradients, so that
    it holds under momentum, Adam and weight decay; under SGD both are the same, except
    that a clip sees gradients of which only those with m = 0 are removed. The official
    ``epoch_progress`` is "examples".
    """
    refuse(setup, refuse_shared_norm)
    layers = {x.name: x for x in setup.layers if not is_head(setup, x)}
    places = gate_places(setup, layers)
    rules = mask_rules(setup, layers)
    steepen, hold = compensate(s_max), mask_updates()

    def init_aux(key, net):
        require_rules(net, rules)
        return {
            name: jax.random.normal(
                jax.random.fold_in(key, i), (setup.num_tasks, x.n_out), jnp.float32
            )
            for i, (name, x) in enumerate(layers.items())
        }

    def init(params):
        def zeros(*shape):
            return jnp.zeros(shape, jnp.float32)

        used = {name: zeros(x.n_out) for name, x in layers.items()}
        return HATState(used, *({n: zeros() for n in used} for _ in range(2)))

    def slope(ctx) -> jax.Array:
        field = "epoch_progress" if epoch_progress == "batches" else "epoch_fraction"
        return anneal(require_told(getattr(ctx, field), "hat", field), s_max)

    def open_gates(aux, task, s) -> Used:
        return {name: gate(e[task], s, derivative) for name, e in aux.items()}

    def forward(apply_fn, state, aux, *, ctx, rows_of_one_task=True):
        def gates(task, train):
            require_declared(setup, task)
            if not train:
                a = open_gates(aux, task, s_max)
            elif rows_of_one_task:
                a = open_gates(aux, ctx.task, slope(ctx))
            else:
                now, then = open_gates(aux, ctx.task, slope(ctx)), past_gates(aux, task)
                own = (task == ctx.task)[:, None]
                a = {name: jnp.where(own, now[name], then[name]) for name in now}
            return {place: a[layer] for place, layer in places.items()}

        return scale_units(apply_fn, gates)

    def past_gates(aux, task) -> Used:
        """Gates [B, C] of rows of past tasks: as at evaluation, nothing learns them."""
        return jax.lax.stop_gradient(open_gates(aux, task, s_max))

    def loss(loss_fn, state):
        return gate_sparsity(
            loss_fn,
            gates=lambda params, ctx: open_gates(params.aux, ctx.task, slope(ctx)),
            used=state.used,
            strength=strength,
            has_aux=True,
        )

    def validation(params, state, *, task):
        require_declared(setup, task)
        price = gate_sparsity(
            lambda aux: jnp.zeros(()),
            gates=lambda aux: open_gates(aux, task, s_max),
            used=state.used,
            strength=strength,
        )
        return price(params.aux)

    def masks(state, net, task) -> PyTree:
        def one(path, leaf):
            mask = rules[leaf_names(path)](state.used, task)
            # A bias may have axes of length 1 behind its units, [C, 1, 1].
            as_it_lies = mask.ndim == 1 < leaf.ndim and mask.size == leaf.size
            return mask.reshape(leaf.shape) if as_it_lies else mask

        return jax.tree_util.tree_map_with_path(one, net)

    def grads(grads, state, params, *, ctx, out):
        def reach(g, m):
            return jnp.where(m > 0, g, 0)

        net = jax.tree.map(reach, grads.net, masks(state, grads.net, ctx.task))
        aux, _ = steepen.update(
            grads.aux, steepen.init(grads.aux), params.aux, s=slope(ctx)
        )
        return Params(net, aux), state

    def updates(updates, state, params, *, grads, ctx, out):
        task = ctx.task
        require_declared(setup, task)

        def row(u, e):
            moved = clamp(u[task], e[task], bound)
            return jnp.zeros_like(u).at[task].set(moved)

        mask = masks(state, updates.net, task)
        net, _ = hold.update(updates.net, hold.init(updates.net), mask=mask)
        return Params(net, jax.tree.map(row, updates.aux, params.aux)), state

    def after_task(params, state, *, data, model_state, task, key):
        require_declared(setup, task)
        a = open_gates(params.aux, task, s_max)
        shared = {n: jnp.minimum(a[n], u).mean() for n, u in state.used.items()}
        used = {n: jnp.maximum(a[n], u) for n, u in state.used.items()}
        # A clamped embedding ends within a rounding of the bound.
        edge = bound * (1 - 1e-5)
        at_clamp = {n: (jnp.abs(e[task]) >= edge).mean() for n, e in params.aux.items()}
        return params, HATState(used, shared, at_clamp)

    def report(state):
        taken = {name: state.used[name].mean() for name in layers}
        shared = {name: state.shared[name] for name in layers}
        at_clamp = {name: state.at_clamp[name] for name in layers}
        return {"taken": taken, "shared": shared, "at_clamp": at_clamp}

    alone = strategy(
        init_aux=init_aux,
        init=init,
        forward=forward,
        loss=loss,
        grads=grads,
        updates=updates,
        validation=validation,
        after_task=after_task,
        report=report,
    )
    # Replay, or joint training, adds rows of other tasks to a batch.
    by_row = functools.partial(forward, rows_of_one_task=False)
    return alone._replace(beside=alone._replace(forward=by_row))
