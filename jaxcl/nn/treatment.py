"""Changes to a model's layers while it runs: captures and treatments.

An adapter's apply function opens a capture around a model's forward pass. The
treatments that `treated` has put around this function say which layers are computed
differently and which are gated; `shifted` adds to what layers put out. Layers call the
capture through `jaxcl.nn.tagged`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
from jax.extend.core import get_opaque_trace_state

from jaxcl.nn.products import Tag, is_channels_first, stand_in, with_bias
from jaxcl.types import ApplyFn, LayerSpec, Output

Gates = dict[str, jax.Array]
Swaps = dict[str, tuple[LayerSpec, Callable[..., jax.Array]]]


class Call(NamedTuple):
    """A call of a layer, seen by a capture."""

    tag: Tag
    x: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    y: jax.Array


class NormCall(NamedTuple):
    """A call of a normalisation, seen by a capture."""

    name: str
    kind: str
    path: tuple[str, ...]
    follows: str | None
    y: jax.Array


class Treatment(NamedTuple):
    """Changes to layers, by name, for one call of an apply function."""

    swaps: Swaps
    gates: Gates
    shifts: dict[str, jax.Array]
    met: dict[str, list[jax.ShapeDtypeStruct]]  # the outputs of what was called


_TREATMENTS: ContextVar[tuple[Treatment, ...]] = ContextVar("treatments", default=())
_CAPTURE: ContextVar[Capture | None] = ContextVar("capture", default=None)
_INSPECTED: ContextVar[list[Capture] | None] = ContextVar("inspected", default=None)


class Capture:
    """The layers that one forward pass of a model calls; lives for one trace."""

    def __init__(self, treatments: Sequence[Treatment], inspected: bool):
        self.taps: dict[str, jax.Array] = {}
        self.calls: list[Call] = []
        self.norms: list[NormCall] = []
        self.elsewhere: dict[str, Tag] = {}  # layers seen only in other traces
        self._treatments = treatments
        self._inspected = inspected
        self._trace = get_opaque_trace_state()

    def is_here(self) -> bool:
        """Whether the code that runs belongs to the trace of the capture."""
        return get_opaque_trace_state() == self._trace

    def meet(self, tag: Tag, x, kernel, bias, compute, cast) -> jax.Array:
        """Taps a layer and computes it, as the treatments say."""
        self.elsewhere.pop(tag.name, None)
        self.taps[tag.name] = x
        if self._inspected:
            y = compute() if tag.refusal else stand_in(tag, x, kernel, bias)
            self.calls.append(Call(tag, x, kernel, bias, y))
            return y
        swaps = [t.swaps[tag.name] for t in self._treatments if tag.name in t.swaps]
        if len(swaps) > 1:
            raise ValueError(
                f"layer {tag.name!r} would be computed by {len(swaps)} methods at once "
                "(two projections in the backward pass?): chain them by jaxcl.chain"
            )
        if not swaps:
            y = compute()
        else:
            spec, product_of = swaps[0]
            x, kernel, bias = cast(x, kernel, bias) if cast else (x, kernel, bias)
            y = with_bias(tag, product_of(spec, x, kernel), bias)
        for treatment in self._treatments:
            made = jax.ShapeDtypeStruct(y.shape, y.dtype)
            treatment.met.setdefault(tag.name, []).append(made)
            if tag.name in treatment.shifts:
                y = y + treatment.shifts[tag.name]
        return self.gate(tag.name, y, 1 if is_channels_first(tag) else -1)

    def normalise(self, name: str, kind: str, path, x, y) -> jax.Array:
        """Records a normalisation and gates its output, whose channels are last."""
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
                treatment.met.setdefault(name, [])
                y = _scale(y, a, channels)
        return y


def active() -> Capture | None:
    """The capture that is open around the running code, or None."""
    return _CAPTURE.get()


def is_treated() -> bool:
    """Whether a treatment around the running code changes any layer."""
    return any(t.swaps or t.gates or t.shifts for t in _TREATMENTS.get())


@contextmanager
def capturing() -> Iterator[Capture]:
    """Opens a capture around a model's forward pass, for an adapter's apply function.

    The treatments around the apply function apply in it.
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
    """Makes captures opened inside it hold a `Call` for each layer, in running order.

    Each layer's product is replaced by a separate array of zeros: any operation that
    still reads a kernel is not its layer, and the path between layers can be traced.
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
      The apply function. It raises a ValueError if a swap or a gate is for a layer that
      the model does not compute by `dense` or `conv` where a capture sees it. The
      message names such layers: no layer is silently left untreated.
    """

    def apply(net, model_state, x, task, key, train) -> Output:
        treatment = Treatment(*make(task, train), {}, {})
        out = under(treatment, apply_fn, net, model_state, x, task, key, train)
        missed = {**treatment.swaps, **treatment.gates}.keys() - treatment.met.keys()
        if missed:
            raise ValueError(
                f"layer {', '.join(map(repr, sorted(missed)))} is to be treated, but "
                "the model does not compute it where it can be: through jaxcl.nn.dense "
                "or conv, or as a Dense, Conv or Linear module of an adapter, and not "
                "inside jit, scan or checkpoint"
            )
        return out

    return apply


def shifted(apply_fn: ApplyFn, shifts: dict[str, jax.Array]) -> ApplyFn:
    """An apply function that adds arrays to the outputs of layers, before their gates.

    The gradient with respect to a shift of zeros is that with respect to the output.

    Args:
      apply_fn: an adapter's, wrapped or not.
      shifts: arrays by layer name, of the shapes that `outputs_met` gives.
    """

    def apply(*args) -> Output:
        return under(Treatment({}, {}, shifts, {}), apply_fn, *args)

    return apply


def under(treatment: Treatment, apply_fn: ApplyFn, *args) -> Output:
    """Calls an apply function within a treatment."""
    token = _TREATMENTS.set((*_TREATMENTS.get(), treatment))
    try:
        return apply_fn(*args)
    finally:
        _TREATMENTS.reset(token)


def _scale(y: jax.Array, a: jax.Array, channels: int) -> jax.Array:
    """Units times gates: computed in the wider dtype, returned in the units'."""
    inner = (1,) * (y.ndim - 2)
    if channels == 1:
        a = a.reshape(*a.shape, *inner)
    elif a.ndim == 2:
        a = a.reshape(a.shape[0], *inner, a.shape[1])
    return (y * a).astype(y.dtype)
