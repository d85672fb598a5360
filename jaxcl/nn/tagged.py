"""The one primitive through which methods treat a layer: `dense` and `conv`.

Outside a capture they are the plain product. An adapter's apply function opens a
capture around a model. Inside it, a layer's input is tapped, its product of input and
kernel may be computed by another function, and its units may be gated. The treatments
that `treated` puts around an apply function say which of these applies to a layer.

A capture holds tracers of the trace in which it was opened; they leave it as outputs of
the apply function. If a layer runs in another trace and this is a `jax.vmap`, the
capture handles it from outside (all examples at once). Inside jit, scan or checkpoint a
layer is computed as usual and has no tap, and a treatment that needs it is refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import jax
from jax.custom_batching import custom_vmap

from jaxcl.nn.products import Tag, product
from jaxcl.nn.treatment import active
from jaxcl.schema import Count, Natural, OneOf, require
from jaxcl.types import Padding

_Around = tuple[Natural, Natural]


def dense(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    name: str,
    axis: int = -1,
) -> jax.Array:
    """x K + b on the last axis, as a layer that methods can treat.

    Args:
      x: [..., D].
      kernel: [D, O]; with axis=0 [O, D].
      bias: [O] or None.
      name: the layer's unique name, the key of ``Output.taps``.
      axis: the kernel's axis over its outputs, -1 or 0.

    Returns:
      [..., O].

    Raises:
      ValueError: axis has another value.

    Example:
      >>> import jax.numpy as jnp, jaxcl
      >>> def forward(net, x):
      ...     h = jaxcl.nn.dense(x, net["w"], net["b"], name="hidden")
      ...     return jaxcl.nn.dense(jnp.tanh(h), net["out"], name="head")
      >>> net = {"w": jnp.ones([3, 2]), "b": jnp.zeros(2), "out": jnp.ones([2, 4])}
      >>> setup = jaxcl.setup_for(forward, jnp.zeros([5, 3]), net=net, num_outputs=4,
      ...                         num_tasks=2, heads=(("out",),))
      >>> [(layer.name, layer.d_in, layer.feeds_on) for layer in setup.layers]
      [('hidden', 3, ()), ('head', 2, ('hidden',))]
    """
    return call(Tag(name, "dense", _checked(axis)), x, kernel, bias)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    name: str,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    axis: int = -1,
) -> jax.Array:
    """Two-dimensional convolution, as a layer that methods can treat.

    Args:
      x: [B, H, W, C]; with axis=0 [B, C, H, W]; or one example without B.
      kernel: [kh, kw, C, O]; with axis=0 [O, C, kh, kw].
      bias: [O] (any shape of O elements) or None.
      name: the layer's unique name, the key of ``Output.taps``.
      strides: (sh, sw).
      padding: "VALID", "SAME" or ((top, bottom), (left, right)).
      axis: the kernel's axis over its outputs, -1 or 0.

    Returns:
      [B, H', W', O]; with axis=0 [B, O, H', W'].

    Raises:
      ValueError: axis has another value, or strides or a padding have.
    """
    require("strides", strides, tuple[Count, Count])
    zeros = None if isinstance(padding, str) else tuple[_Around, _Around]
    require("padding", padding, zeros or Annotated[str, OneOf(("SAME", "VALID"))])
    tag = Tag(name, "conv", _checked(axis), tuple(strides), padding)
    return call(tag, x, kernel, bias)


def _checked(axis: int) -> int:
    if axis not in (-1, 0):
        raise ValueError(f"axis must be -1 or 0, got {axis}")
    return axis


def call(
    tag: Tag,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    plain: Callable[[], jax.Array] | None = None,
    cast: Callable[..., Any] | None = None,
) -> jax.Array:
    """Computes a layer: plainly outside a capture, by its treatments inside.

    Args:
      tag: describes the layer.
      x: its input.
      kernel: its kernel.
      bias: its bias or None.
      plain: computes the layer if no treatment replaces it; by default `product`.
      cast: converts ``(x, kernel, bias)`` to the dtypes that the layer computes in, if
        another function computes it.
    """
    compute = plain or (lambda: product(tag, x, kernel, bias))
    capture = active()
    if capture is None:
        return compute()
    if capture.is_here():
        return capture.meet(tag, x, kernel, bias, compute, cast)
    capture.elsewhere[tag.name] = tag
    # JAX has no public name for the type of a value in a vmap. If the name changes, the
    # layer is refused as one in another trace.
    if plain is None and type(x).__name__ == "BatchTracer":
        return _over_examples(tag, x, kernel, bias)
    return compute()


def computed(
    tag: Tag,
    module: Any,
    arrays: tuple[jax.Array, jax.Array, jax.Array | None],
    plain: Callable[[], jax.Array],
    cast: Callable[..., Any],
) -> jax.Array:
    """The output of a framework's layer; a convolution on a CPU by `product`.

    There XLA's own convolution, in the loop over an epoch's steps, takes five to twelve
    times as long.

    Args:
      tag: describes the layer.
      module: the framework's module; with a result type of its own, or a ``refusal`` in
        the tag, it computes itself.
      arrays: x, kernel and bias or None.
      plain: lets the module compute itself.
      cast: converts the arrays to the dtypes that the module computes in.
    """
    if (
        tag.kind != "conv"
        or tag.refusal
        or arrays[0].ndim not in (3, 4)
        or getattr(module, "preferred_element_type", None) is not None
        or jax.default_backend() != "cpu"
    ):
        return plain()
    return product(tag, *cast(*arrays))


def _over_examples(tag: Tag, x, kernel, bias) -> jax.Array:
    """Handles a layer in a `jax.vmap` from outside it, with all examples at once."""

    def plain(*arrays):
        return product(tag, *arrays, *(() if len(arrays) == 3 else (None,)))

    one = custom_vmap(plain)

    @one.def_vmap
    def many(size, batched, *arrays):
        whole = arrays[0].ndim <= 4 or tag.kind == "dense"
        if batched[0] and not any(batched[1:]) and whole:
            x, kernel, *rest = arrays
            return call(tag, x, kernel, rest[0] if rest else None), True
        axes = [0 if b else None for b in batched]
        return jax.vmap(plain, axes, axis_size=size)(*arrays), True

    return one(x, kernel) if bias is None else one(x, kernel, bias)
