"""Finds the gated units before and after each parameter, and so its mask.

This is what HAT needs to know about a model: where its gates go, which rule protects
each parameter, and which models to refuse because no rule would protect them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcl.heads import shares_an_output
from jaxcl.nn.inspection import require_treatable
from jaxcl.ops.gates import conditional_mask
from jaxcl.ops.trees import leaf_names, starts_with
from jaxcl.types import LayerSpec, PyTree, Setup

Used = dict[str, jax.Array]
"""Layer name -> float32[C], the highest gate any past task has put on each unit."""
Rule = Callable[[Used, jax.Array], jax.Array]
"""``(used, current task) -> mask`` of one parameter."""

_MIXES_UNITS = ("group", "layer")


def is_head(setup: Setup, layer: LayerSpec) -> bool:
    """Whether a layer is the classifier, whose units have no gates."""
    return starts_with(layer.path, setup.heads)


def refuse(setup: Setup, refuse_shared_norm: bool) -> None:
    """Refuses a setup that gates and masks would not protect.

    Raises:
      ValueError: the message names the part, the reason and the choices."""
    if not any(is_head(setup, x) for x in setup.layers) or len(setup.layers) < 2:
        raise ValueError(
            "hat needs setup.layers with a classifier that setup.heads names and a "
            f"layer before it, got layers {[x.name for x in setup.layers]} and heads "
            f"{setup.heads}"
        )
    require_treatable(setup.layers, "hat")
    ends = {x.name: set(x.feeds_on or ()) for x in setup.layers if is_head(setup, x)}
    for inner in ends.keys() & set().union(*ends.values()):
        raise ValueError(
            f"hat: layer {inner!r} is part of the classifier that setup.heads names, "
            "and another layer reads it; it would have no gates, and every task would "
            "change it: let heads name the last layer alone"
        )
    if shares_an_output(setup):
        raise ValueError(
            "hat needs the task of every example, at test time too, and outputs that "
            "are its own; here tasks share outputs, as in domain- and class-"
            "incremental learning: use scenario 'task'"
        )
    unknown = [repr(x.name) for x in setup.layers if x.feeds_on is None]
    if unknown:
        raise ValueError(
            f"hat has to know which layers feed layer {', '.join(unknown)}, and cannot "
            "follow it through what commutes with a gate: give the model a property "
            "'wiring', a dict from layer name to names"
        )
    for norm in setup.norms:
        if norm.kind == "batch" and refuse_shared_norm:
            raise ValueError(
                f"hat refuses {norm.name!r}, a BatchNorm whose statistics all tasks "
                "share: later tasks move them, and with them what earlier tasks "
                "compute, though no protected weight moves; use norm 'none', 'group', "
                "'layer' or 'batch_per_task' (one BatchNorm per task)"
            )
        if norm.follows is None:
            raise ValueError(
                f"hat cannot treat normalisation {norm.name!r}: it does not read a "
                "layer's output directly, so that its units have no gate of their own"
            )


def gate_places(setup: Setup, layers: dict[str, LayerSpec]) -> dict[str, str]:
    """Module whose output is gated -> layer whose gates it takes."""
    places = {name: name for name in layers}
    for norm in setup.norms:
        if norm.follows in layers:
            places[norm.name] = norm.follows
            if norm.kind not in _MIXES_UNITS:
                places.pop(norm.follows, None)
    return places


def mask_rules(
    setup: Setup, layers: dict[str, LayerSpec]
) -> dict[tuple[str, ...], Rule]:
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
            behind, before = used[layer.name], None
            if layer.feeds_on:
                before = jnp.stack([used[source] for source in layer.feeds_on]).max(0)
            mask = conditional_mask(
                before,
                behind,
                rows if layer.feeds_on else None,
                axis=layer.axis,
                repeats=layer.repeats,
            )
            channels_first = layer.axis == 0 and layer.kind == "conv"
            return mask[:, :, None, None] if channels_first else mask

        return rule

    def whole(used, task):
        # Outputs that are not in play are held still under any strategy.
        return jnp.ones(())

    def own_row(used, task):
        return (jnp.arange(setup.num_tasks) == task).astype(jnp.float32)[:, None]

    for layer in setup.layers:
        gated = layer.name in layers
        add(layer.path, kernel(layer) if gated else whole)
        add(layer.path_of_bias, bias(layer.name) if gated else whole)
    for norm in setup.norms:
        per_task = norm.kind == "batch_per_task"
        for leaf in ("scale", "bias"):
            add((*norm.path, leaf), own_row if per_task else bias(str(norm.follows)))
    return rules


def require_rules(net: PyTree, rules: dict[tuple[str, ...], Rule]) -> None:
    """Raises ValueError for a parameter that nothing would protect, by name."""
    for path, _ in jax.tree_util.tree_leaves_with_path(net):
        names = leaf_names(path)
        if names not in rules:
            raise ValueError(
                f"hat knows no rule to protect parameter {'/'.join(names)!r}: it "
                "belongs to no dense or convolutional layer and to no known "
                "normalisation"
            )


def require_declared(setup: Setup, task: jax.Array) -> None:
    """Refuses a task out of range, whose index would be clipped; tracers pass.

    Raises:
      ValueError: there is no embedding for the task.
    """
    if isinstance(task, Tracer):
        return
    for t in (np.min(task), np.max(task)):
        if not 0 <= t < setup.num_tasks:
            raise ValueError(
                f"hat has embeddings for num_tasks={setup.num_tasks} tasks, got task "
                f"{t} (counted from 0)"
            )
