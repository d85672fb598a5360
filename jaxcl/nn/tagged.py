"""The one primitive through which methods treat a layer: `dense` and `conv`.

Outside a capture they are the plain product. An adapter's apply function opens a
capture around a model; inside it a layer's input is tapped, its product of input and
kernel may be computed by another function, and its units may be gated. Which of these
is asked of a layer stands in treatments that `treated` puts around an apply function.

What a capture holds are tracers of the trace it was opened in, and leaves it as outputs
of the apply function. A layer that runs in another trace is met from there if that is a
`jax.vmap` (all its examples at once); inside jit, scan or checkpoint it is computed as
ever, has no tap, and a treatment that asks for it is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import get_opaque_trace_state

from jaxcl.ops.convolution import add_bias, convolve
from jaxcl.types import ApplyFn, LayerSpec, Output, Padding

Gates = dict[str, jax.Array]
Swaps = dict[str, tuple[LayerSpec, Callable[..., jax.Array]]]


class Tag(NamedTuple):
    """A layer as the one who calls it declares it."""

    name: str
    kind: str  # "dense" or "conv"
    axis: int = -1  # of the kernel that runs over its outputs, -1 or 0
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "VALID"
    path: tuple[str, ...] | None = None  # of the kernel; None: found by identity
    refusal: str = ""  # why it can be tapped and gated, but not projected


class Call(NamedTuple):
    """A layer met in a capture."""

    tag: Tag
    x: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    y: jax.Array


class NormCall(NamedTuple):
    """A normalisation met in a capture."""

    name: str
    kind: str
    path: tuple[str, ...]
    follows: str | None
    y: jax.Array


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
      name: the layer's own, the key of ``Output.taps``.
      axis: of the kernel that runs over its outputs, -1 or 0.

    Returns:
      [..., O].

    Raises:
      ValueError: another axis.

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
      name: the layer's own, the key of ``Output.taps``.
      strides: (sh, sw).
      padding: "VALID", "SAME" or ((top, bottom), (left, right)).
      axis: of the kernel that runs over its outputs, -1 or 0.

    Returns:
      [B, H', W', O]; with axis=0 [B, O, H', W'].

    Raises:
      ValueError: another axis.
    """
    tag = Tag(name, "conv", _checked(axis), tuple(strides), padding)
    return call(tag, x, kernel, bias)


def _checked(axis: int) -> int:
    if axis not in (-1, 0):
        raise ValueError(f"axis must be -1 or 0, got {axis}")
    return axis


class Treatment(NamedTuple):
    """What is asked of layers, by name, for one call of an apply function."""

    swaps: Swaps
    gates: Gates
    met: set[str]


_TREATMENTS: ContextVar[tuple[Treatment, ...]] = ContextVar("treatments", default=())
_CAPTURE: ContextVar[Capture | None] = ContextVar("capture", default=None)
_INSPECTED: ContextVar[list[Capture] | None] = ContextVar("inspected", default=None)


class Capture:
    """What one forward pass of a model has met; for the length of a trace."""

    def __init__(self, treatments: Sequence[Treatment], inspected: bool):
        self.taps: dict[str, jax.Array] = {}
        self.calls: list[Call] = []
        self.norms: list[NormCall] = []
        self.elsewhere: dict[str, Tag] = {}  # layers met in other traces only
        self._treatments = treatments
        self._inspected = inspected
        self._trace = get_opaque_trace_state()

    def is_here(self) -> bool:
        """Whether the code that runs belongs to the trace of the capture."""
        return get_opaque_trace_state() == self._trace

    def meet(self, tag: Tag, x, kernel, bias, compute, cast) -> jax.Array:
        """Taps a layer and computes it, as the treatments will have it."""
        self.elsewhere.pop(tag.name, None)
        self.taps[tag.name] = x
        if self._inspected:
            y = compute() if tag.refusal else _stand_in(tag, x, kernel, bias)
            self.calls.append(Call(tag, x, kernel, bias, y))
            return y
        swapped = None
        for treatment in self._treatments:
            if tag.name in treatment.swaps:
                treatment.met.add(tag.name)
                swapped = treatment.swaps[tag.name]
        if swapped is None:
            y = compute()
        else:
            spec, product_of = swapped
            x, kernel, bias = cast(x, kernel, bias) if cast else (x, kernel, bias)
            y = _with_bias(tag, product_of(spec, x, kernel), bias)
        return self.gate(tag.name, y, 1 if is_channels_first(tag) else -1)

    def normalise(self, name: str, kind: str, path, x, y) -> jax.Array:
        """Notes a normalisation and gates its output, whose channels are last."""
        if self._inspected:
            read = [made.tag.name for made in self.calls if made.y is x]
            follows = read[-1] if read else None
            self.norms.append(NormCall(name, kind, path, follows, y))
        return self.gate(name, y, -1)

    def gate(self, name: str, y: jax.Array, channels: int) -> jax.Array:
        """Multiplies an output by the gates that treatments have for its name."""
        for treatment in reversed(self._treatments):
            a = treatment.gates.get(name)
            if a is not None:
                treatment.met.add(name)
                y = _scale(y, a, channels)
        return y


def active() -> Capture | None:
    """The capture that is open around the code that runs."""
    return _CAPTURE.get()


@contextmanager
def capturing() -> Iterator[Capture]:
    """Opens a capture around a model's forward pass; an adapter's apply function does.

    The treatments around the apply function hold in it.
    """
    inspected = _INSPECTED.get()
    capture = Capture(_TREATMENTS.get(), inspected is not None)
    if inspected is not None:
        inspected.append(capture)
    token = _CAPTURE.set(capture)
    try:
        yield capture
    finally:
        _CAPTURE.reset(token)


@contextmanager
def inspecting() -> Iterator[list[Capture]]:
    """Captures opened within hold a `Call` for each layer, in the order they run.

    In place of a layer's product stands an array of zeros of its own: whatever still
    reads a kernel is not its layer, and what is between two layers can be followed.
    """
    found: list[Capture] = []
    token = _INSPECTED.set(found)
    try:
        yield found
    finally:
        _INSPECTED.reset(token)


def treated(
    apply_fn: ApplyFn,
    make: Callable[[jax.Array, bool], tuple[Swaps, Gates]],
) -> ApplyFn:
    """An apply function whose layers are treated.

    Args:
      apply_fn: an adapter's, wrapped or not.
      make: ``(task int32[B], train) -> (swaps, gates)``, by layer name.

    Returns:
      The apply function. It raises a ValueError that names the layers which a swap or
      a gate was for and which the model does not compute by `dense` or `conv` where a
      capture sees it: nothing is left untreated without a word.
    """

    def apply(net, model_state, x, task, key, train) -> Output:
        swaps, gates = make(task, train)
        treatment = Treatment(swaps, gates, set())
        token = _TREATMENTS.set((*_TREATMENTS.get(), treatment))
        try:
            out = apply_fn(net, model_state, x, task, key, train)
        finally:
            _TREATMENTS.reset(token)
        missed = [name for name in {**swaps, **gates} if name not in treatment.met]
        if missed:
            raise ValueError(
                f"layer {', '.join(map(repr, missed))} is to be treated, but the model "
                "does not compute it where it can be: through jaxcl.nn.dense or conv, "
                "or as a Dense, Conv or Linear module of an adapter, and not inside "
                "jit, scan or checkpoint"
            )
        return out

    return apply


def call(
    tag: Tag,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    plain: Callable[[], jax.Array] | None = None,
    cast: Callable[..., Any] | None = None,
) -> jax.Array:
    """Computes a layer: plainly outside a capture, as treatments have it inside.

    Args:
      tag: what the layer is.
      x: its input.
      kernel: of the layer.
      bias: or None.
      plain: computes the layer where nothing is asked of it; by default `product`.
      cast: brings ``(x, kernel, bias)`` to the dtypes that the layer computes in, where
        another function computes it.
    """
    compute = plain or (lambda: product(tag, x, kernel, bias))
    capture = _CAPTURE.get()
    if capture is None:
        return compute()
    if capture.is_here():
        return capture.meet(tag, x, kernel, bias, compute, cast)
    capture.elsewhere[tag.name] = tag
    # JAX has no public name for what a value in a vmap is. Under another one the layer
    # would be refused as one that is elsewhere.
    if plain is None and type(x).__name__ == "BatchTracer":
        return _over_examples(tag, x, kernel, bias)
    return compute()


def _over_examples(tag: Tag, x, kernel, bias) -> jax.Array:
    """A layer in a `jax.vmap`: met outside it, with all examples at once."""

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


def product(tag: Tag, x, kernel, bias) -> jax.Array:
    """The layer itself, under a name that it keeps in a program traced before."""
    with jax.named_scope(f"jaxcl[{tag.name}]"):
        return _product(tag, x, kernel, bias)


def named(jaxpr: Any) -> set[str]:
    """Names of the layers whose `product` a program holds, at any depth of it."""
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
    y = _with_bias(tag, y, bias)
    return y[0] if single else y


def is_channels_first(tag: Tag | LayerSpec) -> bool:
    """Whether a layer's images are [B, C, H, W]: where its kernel is OIHW."""
    return tag.kind == "conv" and tag.axis == 0


def _with_bias(tag: Tag, y: jax.Array, bias: jax.Array | None) -> jax.Array:
    if bias is None:
        return y
    if is_channels_first(tag):
        return y + bias.reshape(-1, 1, 1)
    return (
        jnp.asarray(add_bias(y, bias.reshape(-1))) if tag.kind == "conv" else y + bias
    )


def _scale(y: jax.Array, a: jax.Array, channels: int) -> jax.Array:
    """The product of units and gates, in the wider dtype, given back in the units'."""
    inner = (1,) * (y.ndim - 2)
    if channels == 1:
        a = a.reshape(*a.shape, *inner)
    elif a.ndim == 2:
        a = a.reshape(a.shape[0], *inner, a.shape[1])
    return (y * a).astype(y.dtype)


def _stand_in(tag: Tag, x, kernel, bias) -> jax.Array:
    arrays: list[Any] = [x, kernel] if bias is None else [x, kernel, bias]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    like = jax.eval_shape(lambda x, k, b=None: product(tag, x, k, b), *shapes)
    return jnp.zeros(like.shape, like.dtype)
