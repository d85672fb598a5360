"""What a Flax Linen model is made of: its layers and normalisations, as values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl.nn import layers
from jaxcl.nn.capture import CONV, apply_fn, init_fn, is_layer
from jaxcl.ops import convolution
from jaxcl.types import LayerSpec, NormSpec

NORM_KINDS = ("batch", "batch_current", "batch_per_task", "group", "layer")
_NORMS = (
    (nn.BatchNorm, "batch"),
    (layers.CurrentBatchNorm, "batch_current"),
    (layers.TaskBatchNorm, "batch_per_task"),
    (nn.GroupNorm, "group"),
    ((nn.LayerNorm, nn.RMSNorm), "layer"),
)


def describe(model: nn.Module, example: jax.ShapeDtypeStruct) -> tuple[LayerSpec, ...]:
    """Lists a model's dense and convolutional layers in the order they run.

    Args:
      model: a Linen module, as for `apply_fn`. If it has a property ``wiring``, a dict
        from layer name to the names of the layers that feed it, the specs carry it;
        interception alone cannot see which layer feeds which.
      example: shape and dtype of an input batch.

    Returns:
      A `LayerSpec` per layer. One that projection and gating cannot treat (grouped or
      dilated convolution, a kernel used more than once) says why in ``refusal``; see
      `require_treatable`.

    Raises:
      ValueError: ``wiring`` names other layers than the model has.
    """
    wiring = getattr(model, "wiring", None)
    found: dict[str, LayerSpec] = {}
    calls: Counter[str] = Counter()

    def record(call, args, kwargs, context):
        if not is_layer(context):
            return call(*args, **kwargs)
        module = context.module
        name = "/".join(module.path)
        calls[name] += 1
        found[name] = _spec(module, name, args[0].shape, wiring)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(init_fn(model, example), jax.random.key(0))
    plain = _reads_input(model, variables, example)
    if wiring is not None and set(wiring) != set(found):
        raise ValueError(
            f"wiring of {type(model).__name__} names {sorted(wiring)}, its layers are "
            f"{sorted(found)}"
        )
    return tuple(
        spec._replace(reads_input=name in plain)
        if calls[name] == 1
        else spec._replace(refusal=f"its kernel is shared by {calls[name]} calls")
        for name, spec in found.items()
    )


def _reads_input(model, variables, example) -> set[str]:
    """Names of the layers whose training input is the network's, reshaped at most."""
    names: list[str] = []

    def taps(net, model_state, x):
        task = jnp.zeros(x.shape[:1], jnp.int32)
        out = apply_fn(model)(net, model_state, x, task, jax.random.key(0), True)
        names[:] = sorted(out.taps)
        return [out.taps[name] for name in names], x

    jaxpr = jax.make_jaxpr(taps)(*variables, example).jaxpr
    *found, x = jaxpr.outvars
    made_by = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    plain = set()
    for name, tap in zip(names, found, strict=True):
        while tap in made_by and made_by[tap].primitive.name == "reshape":
            tap = made_by[tap].invars[0]
        if tap is x:
            plain.add(name)
    return plain


def describe_norms(
    model: nn.Module, example: jax.ShapeDtypeStruct
) -> tuple[NormSpec, ...]:
    """Lists a model's normalisations in the order they run.

    Args:
      model: a Linen module, as for `apply_fn`.
      example: shape and dtype of an input batch.

    Returns:
      A `NormSpec` for each module that is one of Flax's or `jaxcl.nn.layers`'
      BatchNorm, GroupNorm, LayerNorm and RMSNorm. ``follows`` names a layer only if
      what is normalised is that layer's very output, with nothing in between.
    """
    found: list[NormSpec] = []
    outputs: list[tuple[str, jax.Array]] = []

    def record(call, args, kwargs, context):
        module, name = context.module, "/".join(context.module.path)
        kind = next((k for types, k in _NORMS if isinstance(module, types)), None)
        if context.method_name == "__call__" and kind is not None:
            read = [layer for layer, y in outputs if y is args[0]]
            follows = read[0] if read else None
            found.append(NormSpec(name, kind, tuple(module.path), follows))
        y = call(*args, **kwargs)
        if is_layer(context):
            outputs.append((name, y))
        return y

    with nn.intercept_methods(record):
        jax.eval_shape(init_fn(model, example), jax.random.key(0))
    return tuple(found)


def require_treatable(layers: Sequence[LayerSpec], method: str) -> None:
    """Refuses, by name, layers that a method which treats every layer cannot treat.

    Raises:
      ValueError: a layer's ``refusal`` is not empty.
    """
    bad = [f"{layer.name!r} ({layer.refusal})" for layer in layers if layer.refusal]
    if bad:
        raise ValueError(f"{method} cannot treat layer {', '.join(bad)}")


def _spec(module: nn.Module, name: str, shape: tuple[int, ...], wiring) -> LayerSpec:
    refusal, strides, padding, window = "", (1, 1), "VALID", (1, 1)
    kind = "dense"
    if isinstance(module, CONV):
        kind = "conv"
        if isinstance(module, layers.Conv):
            window, strides, padding = module.window, module.strides, module.padding
        else:
            window, strides, padding, refusal = _flax_conv(module)
    d_in = window[0] * window[1] * shape[-1]
    positions = math.prod(shape[1:-1])
    if kind == "conv" and not refusal:
        axes = zip(shape[1:3], window, strides, strict=True)
        positions = math.prod(
            (n + sum(convolution.pads(n, k, s, padding)) - k) // s + 1
            for n, k, s in axes
        )
    return LayerSpec(
        name=name,
        kind=kind,
        path=(*module.path, "kernel"),
        strides=strides,
        padding=padding,
        window=window,
        d_in=d_in,
        n_out=module.features,
        bias=module.use_bias,
        feeds_on=wiring.get(name, ()) if wiring is not None else None,
        refusal=refusal,
        positions=positions,
    )


def _flax_conv(module: nn.Conv):
    def pair(value) -> tuple[int, ...]:
        return (value, value) if isinstance(value, int) else tuple(value or (1, 1))

    window, strides = pair(module.kernel_size), pair(module.strides)
    refusal = ""
    if module.feature_group_count != 1:
        refusal = f"it is a convolution in {module.feature_group_count} groups"
    elif len(window) != 2:
        refusal = f"it is a convolution over {len(window)} axes, not two"
    elif pair(module.kernel_dilation) != (1, 1) or pair(module.input_dilation) != (
        1,
        1,
    ):
        refusal = "it is a dilated convolution"
    elif module.padding not in ("SAME", "VALID"):
        refusal = f"its padding is {module.padding!r}, not SAME or VALID"
    return window, strides, module.padding, refusal
