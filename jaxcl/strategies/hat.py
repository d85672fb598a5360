"""Hard attention to the task: a gate for each unit and task, learned with the weights.

Serrà, Surís, Miron and Karatzoglou, Overcoming catastrophic forgetting with hard
attention to the task, ICML 2018, https://arxiv.org/abs/1801.01423.

The arithmetic is in `jaxcl.gates`, `jaxcl.losses.gate_sparsity`,
`jaxcl.transforms.mask_updates` and `jaxcl.transforms.compensate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcl.capture import require_treatable, scale_units
from jaxcl.gates import anneal, clamp, compensate, conditional_mask, gate
from jaxcl.losses import gate_sparsity
from jaxcl.transforms import mask_updates
from jaxcl.types import LayerSpec, Params, PyTree, Setup, Strategy, strategy

Used = dict[str, jax.Array]
Rule = Callable[[Used, jax.Array], jax.Array]

AT_CLAMP = "embeddings at the clamp"
SHARED = " shared"

_MIXES_UNITS = ("group", "layer")
_SHARES_STATISTICS = ("batch", "batch_current")


class HATState(NamedTuple):
    """What past tasks have taken; keys are names of layers."""

    used: Used  # float32[C] the highest gate any past task has put on a unit
    shared: dict[str, jax.Array]  # float32[] share of the layer the last task reused
    at_clamp: jax.Array  # float32[] share of the last task's embeddings at ±clamp


def hat(
    setup: Setup,
    *,
    s_max: float = 400.0,
    strength: float = 0.75,
    bound: float = 6.0,
    refuse_shared_norm: bool = True,
) -> Strategy:
    """Gives each task units of its own and holds the weights between used units.

    In task t each unit's output is multiplied by its gate a = σ(s e_t), s annealed from
    1/s_max to s_max over each epoch; at evaluation s = s_max, and the gates are those
    of each example's own task. With u = max_{t' < t} a_{t'} over past tasks and
    m_ij = 1 − min(u_i, u_j) of the weight from unit i to unit j,

      L = L_task + λ Σ a (1 − u) / Σ (1 − u)                    over all layers jointly
      Δθ_ij = m_ij · Δθ_ij of the optimizer;  a bias and a first layer have 1 − u_j
      ∂L/∂e ← ∂L/∂e · (s_max/s) (cosh(clip(s e, ±50)) + 1)/(cosh(e) + 1);  |e| ≤ 6

    Of embeddings only the task's row moves, of the head only the task's columns.

    Gates sit on the layer's own output. There they commute with what follows it:
    a ≥ 0, so that relu(a z) = a relu(z), and likewise for pooling by maximum or mean
    and for dropout. An activation must take 0 to 0, or a closed unit would go on
    speaking through weights that later tasks may change. Where branches are added up
    (the skip connections of a ResNet) each branch has gates of its own, and the
    channel of the sum counts as used if any branch's is: the layers that read it have
    u_i = max over branches. A normalisation that mixes units (group, layer) has gates
    before it, which keeps units of later tasks out of its statistics, and after it,
    which closes what its shift opens; its scale and shift are held like a bias. One
    BatchNorm a task has gates after it only: it treats units apart, and would undo a
    gate before it.

    Args:
      setup: the run's `Setup`. Needs ``layers`` with known wiring, ``heads``, outputs
        that no two tasks share, and a Flax Linen model.
      s_max: the slope of the gates at the end of an epoch and at evaluation, > 0.
      strength: λ ≥ 0, the price of units that are still free.
      bound: embeddings are kept within ±bound, > 0.
      refuse_shared_norm: False trains beside a BatchNorm whose statistics all tasks
        share, which is what HAT cannot do without forgetting: to measure that.

    Returns:
      A `Strategy` with float32 embeddings [T, C] per layer as aux and an `HATState`. It
      reports, by layer, the share of units taken so far (1 − it is free; its growth is
      what the task claimed), "LAYER shared", what the task used of what was taken,
      and the share of its embeddings that ended at the clamp. Shares are mean gates.

    Raises:
      ValueError: an argument out of range, or a setup HAT cannot protect, named. In
        hooks called outside jit, a task that was not declared.

    Differs from the official code: the mask multiplies updates, not gradients, so that
    it holds under momentum, Adam and weight decay; under SGD that is the same, but that
    a clip sees gradients of which only those with m = 0 are taken out. Gates have the
    derivative σ(x)σ(−x), see `jaxcl.gates.gate`; s reaches s_max at an epoch's end.
    """
    if not s_max > 0:
        raise ValueError(f"hat: s_max must be greater than 0, got {s_max}")
    if not strength >= 0:
        raise ValueError(f"hat: strength must be at least 0, got {strength}")
    if not bound > 0:
        raise ValueError(f"hat: bound must be greater than 0, got {bound}")
    _refuse(setup, refuse_shared_norm)
    layers = {x.name: x for x in setup.layers if not _is_head(setup, x)}
    places = _places(setup, layers)
    rules = _rules(setup, layers)

    def init(key, net):
        _require_rules(net, rules)
        aux = {
            name: jax.random.normal(
                jax.random.fold_in(key, i), (setup.num_tasks, x.n_out)
            )
            for i, (name, x) in enumerate(layers.items())
        }
        used = {name: jnp.zeros(x.n_out) for name, x in layers.items()}
        zero = jnp.zeros(())
        return aux, HATState(used, {name: zero for name in used}, zero)

    def open_gates(aux, task, s) -> Used:
        return {name: gate(e[task], s) for name, e in aux.items()}

    def forward(state, aux, apply_fn, ctx):
        def gates(task, train):
            _require_declared(setup, task)
            if train:
                a = open_gates(aux, ctx.task, anneal(ctx.epoch_progress, s_max))
            else:
                a = open_gates(aux, task, s_max)
            return {place: a[layer] for place, layer in places.items()}

        return scale_units(apply_fn, gates)

    def loss(state, loss_fn):
        def gates(params, ctx):
            s = anneal(ctx.epoch_progress, s_max)
            return open_gates(params.aux, ctx.task, s)

        return gate_sparsity(
            loss_fn, gates=gates, used=state.used, strength=strength, has_aux=True
        )

    def masks(state, net, task) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: rules[_keys(path)](state.used, task), net
        )

    def grads(state, g, params, ctx, out):
        s = anneal(ctx.epoch_progress, s_max)

        def reach(g, m):
            return jnp.where(m > 0, g, 0)

        net = jax.tree.map(reach, g.net, masks(state, g.net, ctx.task))
        aux = jax.tree.map(lambda g, e: compensate(g, e, s, s_max), g.aux, params.aux)
        return Params(net, aux), state

    def updates(state, u, g, params, ctx, out):
        task = ctx.task
        _require_declared(setup, task)

        def row(u, e):
            moved = clamp(u[task], e[task], bound)
            return jnp.zeros_like(u).at[task].set(moved)

        mask = masks(state, u.net, task)
        net, _ = mask_updates().update(u.net, (), mask=mask)
        return Params(net, jax.tree.map(row, u.aux, params.aux)), state

    def after_task(state, params, model_state, ctx, data):
        a = open_gates(params.aux, ctx.task, s_max)
        shared = {n: jnp.minimum(a[n], u).mean() for n, u in state.used.items()}
        used = {n: jnp.maximum(a[n], u) for n, u in state.used.items()}
        # A clamped embedding ends within a rounding of the bound.
        edge = bound * (1 - 1e-5)
        e = jnp.concatenate([e[ctx.task] for e in params.aux.values()])
        return params, HATState(used, shared, (jnp.abs(e) >= edge).mean())

    def report(state):
        taken = {name: u.mean() for name, u in state.used.items()}
        shared = {f"{name}{SHARED}": v for name, v in state.shared.items()}
        return {**taken, **shared, AT_CLAMP: state.at_clamp}

    return strategy(
        init=init,
        forward=forward,
        loss=loss,
        grads=grads,
        updates=updates,
        after_task=after_task,
        report=report,
    )


def _is_head(setup: Setup, layer: LayerSpec) -> bool:
    return any(layer.path[: len(head)] == head for head in setup.heads)


def _refuse(setup: Setup, refuse_shared_norm: bool) -> None:
    """Raises ValueError for what gates and masks would not protect."""
    if not any(_is_head(setup, x) for x in setup.layers) or len(setup.layers) < 2:
        raise ValueError(
            "hat needs setup.layers with a classifier that setup.heads names and a "
            f"layer before it, got layers {[x.name for x in setup.layers]} and heads "
            f"{setup.heads}"
        )
    require_treatable(setup.layers, "hat")
    if np.asarray(setup.logit_mask).sum(0).max() > 1:
        raise ValueError(
            "hat needs the task of every example, at test time too, and outputs that "
            "are its own; here tasks share outputs, as in domain- and class-"
            "incremental learning: use scenario 'task'"
        )
    unknown = [repr(x.name) for x in setup.layers if x.feeds_on is None]
    if unknown:
        raise ValueError(
            f"hat has to know which layers feed layer {', '.join(unknown)}: give the "
            "model a property 'wiring', a dict from layer name to names"
        )
    for norm in setup.norms:
        if norm.kind in _SHARES_STATISTICS and refuse_shared_norm:
            raise ValueError(
                f"hat refuses {norm.name!r}, a BatchNorm whose statistics all tasks "
                "share: later tasks move them, and with them what earlier tasks "
                "compute, though no protected weight moves; use norm 'none', 'group', "
                "'layer' or 'batch_per_task' (one BatchNorm a task)"
            )
        if norm.follows is None:
            raise ValueError(
                f"hat cannot treat normalisation {norm.name!r}: it does not read a "
                "layer's output directly, so that its units have no gate of their own"
            )


def _places(setup: Setup, layers: dict[str, LayerSpec]) -> dict[str, str]:
    """Module whose output is gated -> layer whose gates it takes."""
    places = {name: name for name in layers}
    for norm in setup.norms:
        if norm.follows in layers:
            places[norm.name] = norm.follows
            if norm.kind not in _MIXES_UNITS:
                places.pop(norm.follows, None)
    return places


def _rules(setup: Setup, layers: dict[str, LayerSpec]) -> dict[tuple[str, ...], Rule]:
    """Path of a parameter -> its mask from the used units and the current task."""
    rules: dict[tuple[str, ...], Rule] = {}

    def add(path: tuple[str, ...], rule: Rule) -> None:
        rules[path] = rule

    def bias(name: str) -> Rule:
        return lambda used, task: 1 - used[name]

    def kernel(layer: LayerSpec) -> Rule:
        rows = layer.d_in // (layer.window[0] * layer.window[1])
        for source in layer.feeds_on or ():
            if rows % layers[source].n_out:
                raise ValueError(
                    f"hat: layer {layer.name!r} has {rows} inputs, which is no "
                    f"multiple of the {layers[source].n_out} units of {source!r}"
                )

        def rule(used, task):
            if not layer.feeds_on:
                return conditional_mask(None, used[layer.name])
            branches = [used[source] for source in layer.feeds_on]
            before = jnp.stack(branches).max(0)
            return conditional_mask(before, used[layer.name], rows)

        return rule

    def columns(used, task):
        return setup.logit_mask[task].astype(jnp.float32)

    def own_row(used, task):
        return (jnp.arange(setup.num_tasks) == task).astype(jnp.float32)[:, None]

    for layer in setup.layers:
        gated = layer.name in layers
        add(layer.path, kernel(layer) if gated else columns)
        add((*layer.path[:-1], "bias"), bias(layer.name) if gated else columns)
    for norm in setup.norms:
        per_task = norm.kind == "batch_per_task"
        for leaf in ("scale", "bias"):
            add((*norm.path, leaf), own_row if per_task else bias(str(norm.follows)))
    return rules


def _keys(path) -> tuple[str, ...]:
    return tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def _require_rules(net: PyTree, rules: dict[tuple[str, ...], Rule]) -> None:
    for path, _ in jax.tree_util.tree_leaves_with_path(net):
        if _keys(path) not in rules:
            raise ValueError(
                f"hat knows no rule to protect parameter {'/'.join(_keys(path))!r}: it "
                "belongs to no dense or convolutional layer and to no known "
                "normalisation"
            )


def _require_declared(setup: Setup, task: jax.Array) -> None:
    """Where the task is a value, not a tracer: there indices out of range are clipped.

    Raises:
      ValueError: there is no embedding for the task.
    """
    if not isinstance(task, Tracer) and np.max(task) >= setup.num_tasks:
        raise ValueError(
            f"hat has embeddings for num_tasks={setup.num_tasks} tasks, got task "
            f"{np.max(task)} (counted from 0)"
        )
