"""Describes a model's layers and normalisations as values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax

from jaxcl.checks import require
from jaxcl.nn import products, wiring
from jaxcl.nn.capture import apply_fn, init_fn
from jaxcl.nn.products import Tag, is_channels_first
from jaxcl.nn.program import Leaves, Program, readers, traced
from jaxcl.nn.treatment import Call
from jaxcl.ops import convolution
from jaxcl.ops.trees import leaf_names
from jaxcl.types import ApplyFn, LayerSpec, NormSpec, PyTree

NORM_KINDS = ("batch", "batch_current", "batch_per_task", "group", "layer")


class Description(NamedTuple):
    """A model's layers and normalisations, in the order they run."""

    layers: tuple[LayerSpec, ...]
    norms: tuple[NormSpec, ...]


def describe(model: nn.Module, example: jax.ShapeDtypeStruct) -> tuple[LayerSpec, ...]:
    """Lists a Linen model's dense and convolutional layers in the order they run.

    Args:
      model: a Linen module, as for `capture.apply_fn`. If it has a property ``wiring``,
        a dict from layer name to the names of the layers that feed it, the specs hold
        it; else they hold the wiring found by tracing.
      example: shape and dtype of an input batch.

    Returns:
      A `LayerSpec` per layer; see `inspect`.

    Raises:
      ValueError: ``wiring`` names other layers than the model has.
    """
    return describe_linen(model, example).layers


def describe_norms(
    model: nn.Module, example: jax.ShapeDtypeStruct
) -> tuple[NormSpec, ...]:
    """Lists a Linen model's normalisations in the order they run.

    Args:
      model: a Linen module, as for `capture.apply_fn`.
      example: shape and dtype of an input batch.

    Returns:
      A `NormSpec` for each module that is one of Flax's or `jaxcl.nn.layers`'
      BatchNorm, GroupNorm, LayerNorm and RMSNorm. ``follows`` names a layer only if its
      output itself is normalised, with nothing in between.
    """
    return describe_linen(model, example).norms


def describe_linen(model: nn.Module, example: jax.ShapeDtypeStruct) -> Description:
    """The layers and normalisations of a Linen model."""
    net, statistics = jax.eval_shape(init_fn(model, example), jax.random.key(0))
    declared, name = getattr(model, "wiring", None), type(model).__name__
    return inspect(apply_fn(model), net, statistics, example, declared, name)


def inspect(
    f: ApplyFn,
    net: PyTree,
    model_state: PyTree,
    example: jax.ShapeDtypeStruct,
    declared: Mapping[str, tuple[str, ...]] | None = None,
    model: str = "the model",
) -> Description:
    """Runs a model once on shapes and lists its layers and normalisations.

    Args:
      f: an adapter's apply function.
      net: its parameters, or their shapes.
      model_state: its statistics, or their shapes.
      example: shape and dtype of an input batch.
      declared: layer -> layers that feed it; None: found by tracing.
      model: its name, for messages.

    Returns:
      A `Description`. A layer that projection and gating cannot treat (grouped or
      dilated convolution, a kernel or bias used more than once, a class with a product
      of its own, inputs of which an example is not one row, a layer inside jit, scan or
      checkpoint) says why in ``refusal``; see `require_treatable`.

    Raises:
      ValueError: the declared wiring names other layers than the model has, or two
        layers share a name.
    """
    seen, program, leaves = traced(f, net, model_state, example)
    for name in products.named(program.jaxpr) - set(seen.taps):
        # Inside a jit traced earlier: no call was made that a capture could see.
        seen.elsewhere.setdefault(name, Tag(name, "dense"))
    specs = {
        call.tag.name: _spec(call, leaves, example.shape[0]) for call in seen.calls
    }
    if declared is not None and set(declared) != set(specs) | set(seen.elsewhere):
        raise ValueError(
            f"wiring of {model} names {sorted(declared)}, its layers are "
            f"{sorted(specs)}"
        )
    calls = Counter(call.tag.name for call in seen.calls)
    kernels = Counter(spec.path for spec in specs.values())
    biases = Counter(s.bias_path for s in specs.values() if s.bias_path)
    for name, spec in specs.items():
        others = len({s.name for s in specs.values() if s.path == spec.path})
        used, refusal = readers(program, spec.path), spec.refusal
        if calls[name] > 1 or kernels[spec.path] > 1:
            refusal = f"its kernel is shared by {max(calls[name], others)} calls"
        elif used and not refusal:
            refusal = f"its kernel is read outside it too, by {used[0]}"
        elif spec.bias_path and not refusal:
            used = readers(program, spec.bias_path)
            if biases[spec.bias_path] > 1 or used:
                by = used[0] if used else "another layer"
                refusal = f"its bias is read outside it too, by {by}"
        specs[name] = spec._replace(refusal=refusal)
    norms = tuple(NormSpec(n.name, n.kind, n.path, n.follows) for n in seen.norms)
    specs = _wired(specs, seen, program, declared)
    for name, tag in seen.elsewhere.items():
        specs[name] = _elsewhere(tag)
    return Description(tuple(specs.values()), norms)


def require_treatable(layers: Sequence[LayerSpec], method: str) -> None:
    """Refuses, by name, layers that cannot be treated, for methods that treat them all.

    Raises:
      ValueError: a layer's ``refusal`` is not empty.
    """
    bad = [f"{layer.name!r} ({layer.refusal})" for layer in layers if layer.refusal]
    if bad:
        raise ValueError(f"{method} cannot treat layer {', '.join(bad)}")


def layer_output(spec: LayerSpec, net: PyTree, x: jax.Array) -> jax.Array:
    """A layer's output x K + b for its input x, from a network's parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(net)
    found = {leaf_names(path): leaf for path, leaf in leaves}
    tag = Tag(spec.name, spec.kind, spec.axis, spec.strides, spec.padding)
    y = products.product(tag, x, found[spec.path], None)
    if not spec.bias:
        return y
    bias = found[spec.path_of_bias]
    return y + (bias.reshape(-1, 1, 1) if is_channels_first(spec) else bias)


def _wired(specs, seen, program: Program, declared) -> dict[str, LayerSpec]:
    """Adds to layers what feeds them, and whether they read the input unchanged."""
    made = {}
    units = {name: spec.n_out for name, spec in specs.items()}
    for call, var in zip(seen.calls, program.outputs, strict=True):
        channels = 1 if is_channels_first(call.tag) else -1
        made[var] = wiring.start(call.y.shape, channels, call.tag.name)
    for norm, var in zip(seen.norms, program.norms, strict=True):
        if norm.follows is not None:
            made[var] = wiring.start(norm.y.shape, -1, norm.follows)
    known = {} if declared is not None else wiring.follow(program.jaxpr, made)
    made_by = {out: eqn for eqn in program.jaxpr.eqns for out in eqn.outvars}
    for call, tap in zip(seen.calls, program.taps, strict=True):
        name, channels = call.tag.name, 1 if is_channels_first(call.tag) else -1
        if declared is not None:
            found = wiring.Reads(tuple(declared.get(name, ())), False)
        else:
            nothing = wiring.Units(None, frozenset(), None)
            found = wiring.reads(
                known.get(tap, nothing), call.tag.kind, channels, units
            )
        while tap in made_by and made_by[tap].primitive.name == "reshape":
            tap = made_by[tap].invars[0]
        specs[name] = specs[name]._replace(
            feeds_on=found.layers,
            repeats=found.repeats,
            reads_input=tap is program.x and not specs[name].refusal,
        )
    return specs


def _spec(call: Call, leaves: Leaves, examples: int) -> LayerSpec:
    tag, shape, kernel = call.tag, call.x.shape, call.kernel.shape
    path = tag.path or leaves.paths.get(id(call.kernel))
    refusal, known = tag.refusal, leaves.paths.get(id(call.bias))
    if path is None:
        refusal = "its kernel is made of parameters, it is not one itself"
    elif call.bias is not None and known is None:
        refusal = refusal or "its bias is made of parameters, it is not one itself"
    elif shape[0] != examples:
        refusal = refusal or "its first axis is not that of the examples"
    window, positions = (1, 1), math.prod(shape[1:-1])
    if tag.kind == "conv":
        first = tag.axis == 0
        window = tuple(kernel[2:] if first else kernel[:-2])
        if not refusal:
            axes = zip(
                shape[2:] if first else shape[1:3], window, tag.strides, strict=True
            )
            positions = math.prod(
                (n + sum(convolution.pads(n, k, s, tag.padding, i)) - k) // s + 1
                for i, (n, k, s) in enumerate(axes)
            )
    n_out = kernel[tag.axis]
    require(n_out > 0, f"layer {tag.name!r} must have at least 1 output, got 0")
    return LayerSpec(
        name=tag.name,
        kind=tag.kind,
        path=path or (),
        strides=tag.strides,
        padding=tag.padding,
        window=window,
        d_in=math.prod(kernel) // n_out,
        n_out=n_out,
        bias=call.bias is not None,
        feeds_on=None,
        refusal=refusal,
        positions=positions,
        axis=tag.axis,
        bias_path=known,
        dtype=str(call.kernel.dtype),
    )


def _elsewhere(tag: Tag) -> LayerSpec:
    """A layer of which only its tag is known, and that it cannot be treated."""
    return LayerSpec(
        name=tag.name,
        kind=tag.kind,
        path=tag.path or (),
        strides=tag.strides,
        padding=tag.padding,
        window=(1, 1),
        d_in=0,
        n_out=0,
        bias=False,
        feeds_on=None,
        refusal="it is inside jit, scan, checkpoint or another transformation",
        axis=tag.axis,
    )
