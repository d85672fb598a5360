"""Looks into a Flax Linen model without changing it: which layers, what they read.

With `jaxcl.models` the only place that imports Flax. Everything else takes the pure
functions made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl import models
from jaxcl.types import ApplyFn, LayerSpec, Output, PyTree

DENSE = (nn.Dense, models.Dense)
CONV = (nn.Conv, models.Conv)


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
            if _is_layer(context):
                taps["/".join(context.module.path)] = args[0]
            return call(*args, **kwargs)

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


def describe(
    model: nn.Module, example: jax.ShapeDtypeStruct
) -> tuple[LayerSpec, ...]:
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
        jax.eval_shape(init_fn(model, example), jax.random.key(0))
    if wiring is not None and set(wiring) != set(found):
        raise ValueError(
            f"wiring of {type(model).__name__} names {sorted(wiring)}, its layers are "
            f"{sorted(found)}"
        )
    return tuple(
        spec
        if calls[name] == 1
        else spec._replace(refusal=f"its kernel is shared by {calls[name]} calls")
        for name, spec in found.items()
    )


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
        if isinstance(module, models.Conv):
            window, strides, padding = module.window, module.strides, module.padding
        else:
            window, strides, padding, refusal = _flax_conv(module)
    d_in = window[0] * window[1] * shape[-1]
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
    elif pair(module.kernel_dilation) != (1, 1) or pair(module.input_dilation) != (1, 1):
        refusal = "it is a dilated convolution"
    elif module.padding not in ("SAME", "VALID"):
        refusal = f"its padding is {module.padding!r}, not SAME or VALID"
    return window, strides, module.padding, refusal
