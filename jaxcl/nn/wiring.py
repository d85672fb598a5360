"""Finds which layer feeds which, through operations that commute with a gate.

Starting from each layer's output, two facts are tracked for every number that the
program computes: the unit it comes from, and its value if that unit is closed. A gate
on a unit acts on a layer that reads it if each input of this layer comes from one unit
and is 0 if the unit is closed. This holds through relu and similar functions, pooling,
dropout, reshape, transposition, zero padding, and sums of branches whose units are in
the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

NOBODY = -1
"""The unit of a number that depends on no unit: padding."""


class Units(NamedTuple):
    """A number for each element of an array: the unit that it comes from."""

    ids: np.ndarray | None  # int32, shape of the array; None: it depends on no unit
    sources: frozenset[str]  # the layers; several where branches are added up
    closed: float | None  # its value if its unit is 0; None: not known


class Reads(NamedTuple):
    """The source of a layer's input."""

    layers: tuple[str, ...] | None  # () the network's input; None cannot be followed
    repeats: bool  # units of a flattened image lie together: [C, H, W]


_UNKNOWN = "unknown"
_SHAPES = {
    *("reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "rev"),
    *("expand_dims", "concatenate", "pad", "copy", "copy_p"),
}
_REDUCTIONS = {"reduce_max", "reduce_min", "reduce_sum"}
_WINDOWS = {"reduce_window_max", "reduce_window_sum", "reduce_window"}
# Each result depends only on operands at the same position; of other operations that
# keep the shape, like cumsum and sort, nothing is known.
_ELEMENTWISE = {
    *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow"),
    *("neg", "sign", "abs", "square", "sqrt", "rsqrt", "cbrt", "exp", "exp2", "expm1"),
    *("log", "log1p", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "tan"),
    *("asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh"),
    *("atanh", "floor", "ceil", "round", "clamp", "is_finite", "convert_element_type"),
    *("reduce_precision", "stop_gradient", "nextafter", "select_n", "and", "or"),
    *("not", "xor", "eq", "ne", "lt", "le", "gt", "ge"),
}
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_INSIDE = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}
_INSIDE |= {"remat2", "checkpoint", "core_call"}


def start(shape: tuple[int, ...], channels: int, name: str) -> Units:
    """The output of a layer: its units lie along one axis."""
    axis = channels % len(shape)
    ids = np.arange(shape[axis]).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )
    return Units(np.broadcast_to(ids, shape).astype(np.int32), frozenset([name]), 0.0)


def follow(jaxpr: Any, made: Mapping[Any, Units]) -> dict[Any, Any]:
    """Finds the units that each variable of a program comes from.

    Args:
      jaxpr: the program.
      made: variable -> its units by definition: the outputs of layers.

    Returns:
      Variable -> `Units`, or "unknown".
    """
    known: dict[Any, Any] = dict(made)
    _run(jaxpr, known, made)
    return known


def reads(units: Any, kind: str, channels: int, num_units: Mapping[str, int]) -> Reads:
    """Which layers an array comes from, as the input of a layer.

    Args:
      units: the result of `follow` for the array.
      kind: the kind of the layer that reads it.
      channels: the axis of its inputs.
      num_units: layer -> number of its units.
    """
    nothing = Reads(None, False)
    if units == _UNKNOWN:
        return nothing
    if units.ids is None:
        return Reads((), False)
    ids = np.moveaxis(units.ids, channels, -1).reshape(-1, units.ids.shape[channels])
    if units.closed != 0 or (ids != ids[0]).any() or (ids < 0).any():
        return nothing
    ids, sources = ids[0], tuple(sorted(units.sources))
    c = num_units[sources[0]]
    if len(ids) % c or (kind == "conv" and len(ids) != c):
        return nothing
    if (ids == np.tile(np.arange(c), len(ids) // c)).all():
        return Reads(sources, False)
    if (ids == np.repeat(np.arange(c), len(ids) // c)).all():
        return Reads(sources, True)
    return nothing


def _run(jaxpr: Any, known: dict[Any, Any], made: Mapping[Any, Units]) -> None:
    def of(atom: Any) -> Any:
        if isinstance(atom, Literal):
            value = np.asarray(atom.val)
            scalar = float(value) if value.ndim == 0 and value.dtype != object else None
            return Units(None, frozenset(), scalar)
        return known.get(atom, Units(None, frozenset(), None))

    for eqn in jaxpr.eqns:
        given = [of(atom) for atom in eqn.invars]
        results = _step(eqn, given)
        for var, result in zip(eqn.outvars, results, strict=True):
            if var not in made:
                known[var] = result


def _step(eqn: Any, given: list[Any]) -> list[Any]:
    name, many = eqn.primitive.name, len(eqn.outvars)
    if name in _INSIDE:
        inner = next((eqn.params[k] for k in _CALLS if k in eqn.params), None)
        if inner is not None:
            return _call(inner, given)
    if _UNKNOWN in given:
        return [_UNKNOWN] * many
    if all(units.ids is None for units in given):
        shaped = name in _SHAPES or name == "convert_element_type"
        closed = given[0].closed if shaped and len(given) == 1 else None
        return [Units(None, frozenset(), closed)] * many
    if name in _SHAPES:
        return [_reshaped(eqn, given)]
    if name in _REDUCTIONS:
        return [_reduced(given[0], eqn.params["axes"])]
    if name in _WINDOWS:
        return [_windows(eqn, given)]
    if name in _ELEMENTWISE:
        return [_elementwise(eqn, given)]
    return [_UNKNOWN] * many


def _call(closed: Any, given: list[Any]) -> list[Any]:
    jaxpr = getattr(closed, "jaxpr", closed)
    known = dict(zip(jaxpr.invars, given, strict=False))
    _run(jaxpr, known, {})
    nothing = Units(None, frozenset(), None)
    return [
        nothing if isinstance(v, Literal) else known.get(v, nothing)
        for v in jaxpr.outvars
    ]


def _reshaped(eqn: Any, given: list[Any]) -> Any:
    """Moves the units in the same way as the elements."""
    arrays, closed = [], set()
    for units, atom in zip(given, eqn.invars, strict=True):
        shape = atom.aval.shape
        ids = np.full(shape, NOBODY, np.int32) if units.ids is None else units.ids
        arrays.append(jnp.asarray(ids))
        closed.add(units.closed)
    sources = frozenset().union(*(units.sources for units in given))
    new = eqn.primitive.bind(*arrays, **eqn.params)
    return Units(np.asarray(new), sources, closed.pop() if len(closed) == 1 else None)


def _reduced(units: Units, axes: tuple[int, ...]) -> Any:
    assert units.ids is not None
    low, high = units.ids.min(axes), units.ids.max(axes)
    if (low != high).any():
        return _UNKNOWN
    return Units(high, units.sources, 0.0 if units.closed == 0 else None)


def _windows(eqn: Any, given: list[Any]) -> Any:
    units, params = given[0], eqn.params
    if units.ids is None or any(u.ids is not None for u in given[1:]):
        return _UNKNOWN
    names = ("window_dimensions", "window_strides", "padding", "base_dilation")
    extent = tuple(tuple(params[n]) for n in (*names, "window_dilation"))

    def highest(ids: np.ndarray) -> np.ndarray:
        # In float32, where unit numbers are exact: not every backend has a windowed
        # maximum of integers.
        new = jax.lax.reduce_window(
            jnp.asarray(ids, jnp.float32), -jnp.inf, jax.lax.max, *extent
        )
        return np.asarray(new)

    high, low = highest(units.ids), -highest(-units.ids)
    if (high != low).any():
        return _UNKNOWN
    closed = 0.0 if units.closed == 0 else None
    return Units(high.astype(np.int32), units.sources, closed)


def _elementwise(eqn: Any, given: list[Any]) -> Any:
    """Combines numbers elementwise; they have to be of the same unit."""
    shape, ids = eqn.outvars[0].aval.shape, None
    for units in given:
        if units.ids is None:
            continue
        mine = np.broadcast_to(units.ids, shape)
        ids = mine if ids is None else ids
        if ((ids != mine) & (ids >= 0) & (mine >= 0)).any():
            return _UNKNOWN
        ids = np.maximum(ids, mine)
    sources = frozenset().union(*(units.sources for units in given))
    return Units(ids, sources, _closed(eqn, [units.closed for units in given]))


def _closed(eqn: Any, values: list[float | None]) -> float | None:
    """An operation's result for operands with the values of closed units."""
    name = eqn.primitive.name
    if name == "mul" and 0.0 in values:
        return 0.0
    if name == "div" and values[0] == 0.0 and values[1] != 0.0:
        return 0.0
    if name == "select_n" and len(set(values[1:])) == 1:
        return values[1]
    if None in values:
        return None
    scalars = [
        jnp.asarray(value, atom.aval.dtype)
        for value, atom in zip(values, eqn.invars, strict=True)
    ]
    try:
        return float(eqn.primitive.bind(*scalars, **eqn.params))
    except Exception:  # an operation that has no scalar form
        return None
