"""Makes a Flax Linen model into pure functions that also return each layer's input.

Layers can be swapped and their units gated without changing the model: calls of Flax's
and this project's Dense and Conv are redirected to the primitive of `jaxcl.nn.tagged`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxcl.checks import in_one_line
from jaxcl.nn import calling, layers, tagged, treatment
from jaxcl.nn.products import Tag, own_way
from jaxcl.nn.treatment import treated
from jaxcl.types import ApplyFn, LayerSpec, Output, PyTree

LinenModel = nn.Module
"""A Flax Linen module, called as `jaxcl.nn.calling` says."""
DENSE = (nn.Dense, layers.Dense)
CONV = (nn.Conv, layers.Conv, layers.Depthwise)
_NORMS = (
    (nn.BatchNorm, "batch"),
    (layers.CurrentBatchNorm, "batch_current"),
    (layers.TaskBatchNorm, "batch_per_task"),
    (nn.GroupNorm, "group"),
    ((nn.LayerNorm, nn.RMSNorm), "layer"),
)


def is_layer(context: nn.module.InterceptorContext) -> bool:
    return context.method_name == "__call__" and isinstance(
        context.module, (*DENSE, *CONV)
    )


def has_bias(module: nn.Module) -> bool:
    return getattr(module, "use_bias", False)


def init_fn(model: nn.Module, example: jax.ShapeDtypeStruct):
    """Makes ``key -> (net, model_state)`` for a model and the shape of its input."""
    arguments = calling.arguments(model, "Linen")

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        x = jnp.zeros(example.shape, example.dtype)
        task = jnp.zeros(example.shape[:1], jnp.int32)
        try:
            args, kwargs = arguments(task, False)
            variables = dict(model.init(key, x, *args, **kwargs))
        except Exception as error:
            # Raised for an image that is too small, a wrong value of a field, or by the
            # model's own code.
            name, shape = type(model).__name__, list(example.shape[1:])
            why = in_one_line(error).partition(" (https://flax")[0]
            raise ValueError(f"{name}, inputs {shape}: {why}") from error
        net = variables.pop("params", {})
        return net, variables

    return init


def apply_fn(model: nn.Module) -> ApplyFn:
    """Makes the pure ``(net, model_state, x, task, key, train) -> Output`` of a model.

    ``Output.taps`` maps each dense or convolutional layer's name to its input. The
    compiler removes taps that nothing reads.

    Args:
      model: a Linen module called as ``model(x)`` with x [B, ...], with ``task``
        int32[B] and ``train`` or ``deterministic``, Python bools, if it takes them; see
        `jaxcl.nn.calling.arguments`.

    Returns:
      The apply function; ``key`` feeds dropout.

    Raises:
      ValueError: the model has another call signature.
    """
    arguments = calling.arguments(model, "Linen")

    def apply(net, model_state, x, task, key, train) -> Output:
        args, kwargs = arguments(task, train)
        with treatment.capturing() as capture, nn.intercept_methods(_met_by(capture)):
            try:
                logits, new = model.apply(
                    {"params": net, **model_state},
                    x,
                    *args,
                    **kwargs,
                    rngs={"dropout": key},
                    mutable=list(model_state) if train else [],
                )
            except flax.errors.FlaxError as error:
                # For one a BatchNorm without use_running_average=not train.
                why = str(error).partition(" (https://flax")[0]
                raise ValueError(
                    f"{type(model).__name__}, train={train}: {why}"
                ) from error
        return Output(logits, dict(new) if train else model_state, capture.taps)

    return apply


def _met_by(capture: treatment.Capture):
    """The interceptor that passes a model's layers and normalisations to a capture."""

    def intercept(call, args, kwargs, context):
        module, name = context.module, "/".join(context.module.path)
        if is_layer(context):
            tag = tag_of(module)
            bias = module.get_variable("params", "bias") if has_bias(module) else None
            arrays = (args[0], module.get_variable("params", "kernel"), bias)
            cast = partial(promote_dtype, dtype=getattr(module, "dtype", None))

            def plain():
                return call(*args, **kwargs)

            def compute():
                return tagged.computed(tag, module, arrays, plain, cast)

            # This project's Conv already computes itself in this way.
            by = compute if isinstance(module, nn.Conv) else plain
            return tagged.call(tag, *arrays, plain=by, cast=cast)
        y = call(*args, **kwargs)
        if context.method_name != "__call__" or not capture.is_here():
            return y
        kind = next((k for types, k in _NORMS if isinstance(module, types)), None)
        if kind is None:
            return capture.gate(name, y, -1)
        return capture.normalise(name, kind, tuple(module.path), args[0], y)

    return intercept


def tag_of(module: nn.Module) -> Tag:
    """The tag that declares a Dense or Conv module to the primitive."""
    name, path = "/".join(module.path), (*module.path, "kernel")
    own = own_way(module, (*DENSE, *CONV))
    if isinstance(module, DENSE):
        return Tag(name, "dense", path=path, refusal=own)
    if isinstance(module, layers.Conv):
        return Tag(name, "conv", -1, module.strides, module.padding, path)
    if isinstance(module, layers.Depthwise):
        strides, why = (module.stride,) * 2, "it is a depthwise convolution"
        return Tag(name, "conv", -1, strides, "SAME", path, why)
    strides = pair(module.strides)
    padding, refusal = conv_padding(
        module.padding,
        axes=len(pair(module.kernel_size)),
        groups=module.feature_group_count,
        dilated=pair(module.kernel_dilation) != (1, 1)
        or pair(module.input_dilation) != (1, 1),
    )
    return Tag(name, "conv", -1, strides, padding, path, refusal or own)


def pair(value) -> tuple[int, ...]:
    """Flax's strides, windows or dilations as a pair; one number is taken twice."""
    return (value, value) if isinstance(value, int) else tuple(value or (1, 1))


def conv_padding(padding, *, axes: int, groups: int, dilated: bool):
    """A convolution's padding for a `Tag`, and why it must be refused, or ""."""
    if groups != 1:
        return "VALID", f"it is a convolution in {groups} groups"
    if axes != 2:
        return "VALID", f"it is a convolution over {axes} axes, not two"
    if dilated:
        return "VALID", "it is a dilated convolution"
    if isinstance(padding, int):
        padding = ((padding, padding),) * 2
    if isinstance(padding, str):
        known = padding in ("SAME", "VALID")
        return (
            padding,
            "" if known else f"its padding is {padding!r}, not SAME or VALID",
        )
    both = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    return tuple(both), ""


def swap_layers(
    apply_fn: ApplyFn,
    layers: Sequence[LayerSpec],
    compute: Callable[..., jax.Array],
) -> ApplyFn:
    """Replaces the product of input and kernel in some layers by another function.

    Args:
      apply_fn: an adapter's, or of `jaxcl.setup_for`; wrapped or not.
      layers: the layers to treat.
      compute: ``(spec, x, kernel) -> y``, the layer's output before the bias.

    Returns:
      An apply function that does so with ``train=True``; evaluation is untouched. It
      raises a ValueError for a layer that the model does not call; see
      `treatment.treated`.
    """
    own = {layer.name: (layer, compute) for layer in layers}
    return treated(apply_fn, lambda task, train: (own if train else {}, {}))


def scale_units(
    apply_fn: ApplyFn, gates: Callable[[jax.Array, bool], dict[str, jax.Array]]
) -> ApplyFn:
    """Multiplies the output units of layers and other modules by gates.

    A unit is a channel: the last axis of a module's output, or the second for a layer
    with images [B, C, H, W]. The product is computed in the wider of the two dtypes and
    returned in the output's.

    Args:
      apply_fn: an adapter's, or of `jaxcl.setup_for`; wrapped or not.
      gates: ``(task int32[B], train) -> {name of a layer or a module: gate}`` with a
        gate of shape [C], the same for all examples, or [B, C].

    Returns:
      An apply function that does so, in training and in evaluation. It raises a
      ValueError for a name that the model does not call; see `treatment.treated`.
    """
    return treated(apply_fn, lambda task, train: ({}, gates(task, train)))
