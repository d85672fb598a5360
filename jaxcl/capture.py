"""Looks into a Flax Linen model without changing it: which layers, what they read.

With `jaxcl.models` the only place that imports Flax. Everything else takes the pure
functions made here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes

from jaxcl import convolution, layers
from jaxcl.types import ApplyFn, LayerSpec, NormSpec, Output, PyTree

DENSE = (nn.Dense, layers.Dense)
CONV = (nn.Conv, layers.Conv)

NORM_KINDS = ("batch", "batch_current", "batch_per_task", "group", "layer")
_NORMS = (
    (nn.BatchNorm, "batch"),
    (layers.CurrentBatchNorm, "batch_current"),
    (layers.TaskBatchNorm, "batch_per_task"),
    (nn.GroupNorm, "group"),
    ((nn.LayerNorm, nn.RMSNorm), "layer"),
)


def _is_layer(context: nn.module.InterceptorContext) -> bool:
    return context.method_name == "__call__" and isinstance(
        context.module, (*DENSE, *CONV)
    )


def init_fn(model: nn.Module, example: jax.ShapeDtypeStruct):
    """Makes ``key -> (net, model_state)`` for a model and the shape of its input."""

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        x = jnp.zeros(example.shape, example.dtype)
        task = jnp.zeros(example.shape[:1], jnp.int32)
        variables = dict(model.init(key, x, task, False))
        net = variables.pop("params")
        return net, variables

    return init


def apply_fn(model: nn.Module) -> ApplyFn:
    """Makes the pure ``(net, model_state, x, task, key, train) -> Output`` of a model.

    ``Output.taps`` maps each dense or convolutional layer's name to its input. A tap
    that nothing reads is removed by the compiler.

    Args:
      model: a Linen module called as ``model(x, task, train)`` with x [B, ...], task
        int32[B] and train a Python bool.

    Returns:
      The apply function; ``key`` feeds dropout.
    """

    def apply(net, model_state, x, task, key, train) -> Output:
        taps: dict[str, jax.Array] = {}

        def record(call, args, kwargs, context):
            if not _is_layer(context):
                return call(*args, **kwargs)
            name = "/".join(context.module.path)
            taps[name] = args[0]
            if name in swapped:
                return _compute(context.module, args[0], *swapped[name])
            return call(*args, **kwargs)

        swapped = _SWAPPED.get() or {}
        with nn.intercept_methods(record):
            logits, new = model.apply(
                {"params": net, **model_state},
                x,
                task,
                train,
                rngs={"dropout": key},
                mutable=list(model_state) if train else [],
            )
        return Output(logits, dict(new) if train else model_state, taps)

    return apply


def swap_layers(
    apply_fn: ApplyFn,
    layers: Sequence[LayerSpec],
    compute: Callable[..., jax.Array],
) -> ApplyFn:
    """Has some layers' product of input and kernel computed by another function.

    Args:
      apply_fn: made by `apply_fn` of a Linen model, wrapped or not.
      layers: those to treat.
      compute: ``(spec, x, kernel) -> y``, the layer's output before the bias.

    Returns:
      An apply function that does so with ``train=True``; evaluation is untouched.
    """
    own = {layer.name: (layer, compute) for layer in layers}

    def apply(net, model_state, x, task, key, train) -> Output:
        if not train:
            return apply_fn(net, model_state, x, task, key, train)
        token = _SWAPPED.set({**(_SWAPPED.get() or {}), **own})
        try:
            return apply_fn(net, model_state, x, task, key, train)
        finally:
            _SWAPPED.reset(token)

    return apply


# Interceptors set by callers run outside those of `apply_fn`, which alone can put
# something in a layer's place and still have taps and gates around it.
_SWAPPED: ContextVar[dict[str, tuple] | None] = ContextVar("swapped", default=None)


def _compute(module: nn.Module, x: jax.Array, spec: LayerSpec, compute) -> jax.Array:
    x, kernel, bias = dtypes.promote_dtype(
        x,
        module.get_variable("params", "kernel"),
        module.get_variable("params", "bias") if module.use_bias else None,
        dtype=getattr(module, "dtype", None),
    )
    y = compute(spec, x, kernel)
    return y if bias is None else y + bias


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
        if not _is_layer(context):
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
      A `NormSpec` for each module that is one of Flax's or `jaxcl.models`' BatchNorm,
      GroupNorm, LayerNorm and RMSNorm. ``follows`` names a layer only if what is
      normalised is that layer's very output, with nothing in between.
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
        if _is_layer(context):
            outputs.append((name, y))
        return y

    with nn.intercept_methods(record):
        jax.eval_shape(init_fn(model, example), jax.random.key(0))
    return tuple(found)


def scale_units(
    apply_fn: ApplyFn, gates: Callable[[jax.Array, bool], dict[str, jax.Array]]
) -> ApplyFn:
    """Multiplies the units that modules put out by gates.

    A unit is a channel: the last axis of a module's output. The product is taken in
    the wider of the two dtypes and has the output's.

    Args:
      apply_fn: made by `apply_fn` of a Linen model, wrapped or not.
      gates: ``(task int32[B], train) -> {module path, "/"-joined: gate}`` with a gate
        of shape [C], the same for all examples, or [B, C].

    Returns:
      An apply function that does so, in training and in evaluation.
    """

    def apply(net, model_state, x, task, key, train) -> Output:
        by_name = gates(task, train)

        def scale(call, args, kwargs, context):
            y = call(*args, **kwargs)
            a = by_name.get("/".join(context.module.path))
            if a is None or context.method_name != "__call__":
                return y
            if a.ndim == 2:
                a = a.reshape(a.shape[0], *(1,) * (y.ndim - 2), a.shape[1])
            return (y * a).astype(y.dtype)

        with nn.intercept_methods(scale):
            return apply_fn(net, model_state, x, task, key, train)

    return apply


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
