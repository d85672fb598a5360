"""The tag of a layer, and the product of input and kernel that it computes."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.ops.convolution import add_bias, convolve
from jaxcl.types import LayerSpec, Padding

_OWN = (
    *("mask", "dot_general", "dot_general_cls"),
    *("conv_general_dilated", "conv_general_dilated_cls"),
)
_USUAL = (None, jax.lax.dot_general, jax.lax.conv_general_dilated)


class Tag(NamedTuple):
    """A layer as declared by its caller."""

    name: str
    kind: str  # "dense" or "conv"
    axis: int = -1  # the kernel's axis over its outputs, -1 or 0
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "VALID"
    path: tuple[str, ...] | None = None  # of the kernel; None: found by identity
    refusal: str = ""  # why it can be tapped and gated, but not projected


def own_way(layer: Any, bases: tuple[type, ...]) -> str:
    """Why a framework's layer is not the plain product of input and kernel, or "".

    Such as a subclass that adds to the product or changes the kernel before it, a
    masked convolution, another function for the product itself.
    """
    base = next(base for base in bases if isinstance(layer, base))
    name = type(layer).__name__
    for method in ("__call__", "param"):
        if getattr(type(layer), method, None) is not getattr(base, method, None):
            return f"its class {name} has a {method} of its own"
    for field in _OWN:
        if getattr(layer, field, None) not in _USUAL:
            return f"its {field} is not the usual one"
    return ""


def product(tag: Tag, x, kernel, bias) -> jax.Array:
    """The layer itself, under a name that survives in a program traced earlier."""
    with jax.named_scope(f"jaxcl[{tag.name}]"):
        return _product(tag, x, kernel, bias)


def named(jaxpr: Any) -> set[str]:
    """Names of the layers whose `product` a program contains, at any depth."""
    found: set[str] = set()
    for eqn in jaxpr.eqns:
        found |= set(re.findall(r"jaxcl\[(.*?)\]", str(eqn.source_info.name_stack)))
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                found |= named(inner) if hasattr(inner, "eqns") else set()
    return found


def _product(tag: Tag, x, kernel, bias) -> jax.Array:
    if tag.kind == "dense":
        y = x @ (kernel if tag.axis == -1 else kernel.T)
        return y if bias is None else y + bias
    single = x.ndim == 3
    x = x[None] if single else x
    if tag.axis == 0:
        last = convolve(
            x.transpose(0, 2, 3, 1),
            kernel.transpose(2, 3, 1, 0),
            tag.strides,
            tag.padding,
        )
        y = jnp.asarray(last).transpose(0, 3, 1, 2)
    else:
        y = jnp.asarray(convolve(x, kernel, tag.strides, tag.padding))
    y = with_bias(tag, y, bias)
    return y[0] if single else y


def is_channels_first(tag: Tag | LayerSpec) -> bool:
    """Whether a layer's images are [B, C, H, W], so that its kernel is OIHW."""
    return tag.kind == "conv" and tag.axis == 0


def with_bias(tag: Tag, y: jax.Array, bias: jax.Array | None) -> jax.Array:
    if bias is None:
        return y
    if is_channels_first(tag):
        return y + bias.reshape(-1, 1, 1)
    return (
        jnp.asarray(add_bias(y, bias.reshape(-1))) if tag.kind == "conv" else y + bias
    )


def stand_in(tag: Tag, x, kernel, bias) -> jax.Array:
    """Zeros of the shape and dtype of the layer's output."""
    arrays: list[Any] = [x, kernel] if bias is None else [x, kernel, bias]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    like = jax.eval_shape(lambda x, k, b=None: product(tag, x, k, b), *shapes)
    return jnp.zeros(like.shape, like.dtype)
