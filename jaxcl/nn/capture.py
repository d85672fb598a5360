"""A Flax Linen model as pure functions that tell what each layer reads.

Layers can be swapped and their units gated without a change to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes

from jaxcl.nn import layers
from jaxcl.ops import convolution
from jaxcl.types import ApplyFn, LayerSpec, Output, PyTree

LinenModel = nn.Module
"""A Flax Linen module called as ``model(x, task, train)``."""
DENSE = (nn.Dense, layers.Dense)
CONV = (nn.Conv, layers.Conv)


def is_layer(context: nn.module.InterceptorContext) -> bool:
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
            if not is_layer(context):
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
    if bias is None:
        return y
    return convolution.add_bias(y, bias) if spec.kind == "conv" else y + bias


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
