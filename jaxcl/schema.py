"""The values that a field takes: type, range, choices, written as its annotation.

    def ewc(setup, *, strength: NonNegative, fisher: Annotated[str, OneOf(FISHERS)])

`checked` checks a function's keyword arguments against its annotations, and
`jaxcl.fields.require_fields` an object's fields; both name the value and what is
allowed. A new field needs no check, only an annotation.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import jax
import numpy as np
from jax.core import Tracer


class Range(NamedTuple):
    """A rule: a number between two ends; an end is allowed unless it is open."""

    low: float = -math.inf
    high: float = math.inf
    open: str = ""  # "(" the lower end, ")" the upper one, "()" both

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"be at most {self.high:.10g}"
        if self.high < math.inf:
            left, right = "(["["(" not in self.open], ")]"[")" not in self.open]
            return f"lie in {left}{self.low:.10g}, {self.high:.10g}{right}"
        return f"be {'greater than' if self.open else 'at least'} {self.low:g}"

    def holds(self, value: Any) -> bool:
        low = value > self.low if "(" in self.open else value >= self.low
        high = value < self.high if ")" in self.open else value <= self.high
        return bool(low & high)


class NonEmpty(NamedTuple):
    """A rule: a sequence with an entry."""

    def __str__(self) -> str:
        return "not be empty"

    def holds(self, value: Any) -> bool:
        return len(value) > 0


class OneOf(NamedTuple):
    """A rule: one of the given names."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"be one of {', '.join(self.names)}"

    def holds(self, value: Any) -> bool:
        return value in self.names


_INT32 = Range(high=2**31 - 1)
Positive = Annotated[float, Range(0, open="(")]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 1, ")")]  # less than the whole
Shrinkage = Annotated[float, Range(0, 1, "(")]
Count = Annotated[int, Range(1), _INT32]
Natural = Annotated[int, Range(0), _INT32]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Seeds = Annotated[tuple[Seed, ...], NonEmpty()]

_NAMES = {
    float: "a number",
    int: "an integer",
    bool: "True or False",
    str: "text",
    types.NoneType: "None",
}
_TYPES = frozenset(_NAMES.values())
F = TypeVar("F", bound=Callable[..., Any])


def require(name: str, value: Any, kind: Any) -> None:
    """Refuses a value that is not of a kind; a traced value passes.

    Args:
      name: the value's name, for the message.
      value: any.
      kind: an annotation: float, int, bool, str, None, Literal, a union of them, a
        tuple or Sequence of them, Annotated with one of the rules here. Numbers are
        finite. Any other kind allows every value.

    Raises:
      ValueError: "NAME must RULE, got VALUE".
    """
    if rule := broken(value, kind):
        raise ValueError(f"{name} must {rule}, got {value!r}")


def broken(value: Any, kind: Any) -> str | None:
    """The rule of a kind that a value breaks, as "be at least 0", or None."""
    if isinstance(value, Tracer):
        return None
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if rule := broken(value, of[0]):
            return rule
        # Checked in float32, as in training: a value above 0 in 64 bits may be 0 there.
        seen = np.float32(value) if of[0] is float else value
        if isinstance(value, jax.Array):  # inside jit its comparison would be traced
            seen = np.asarray(seen)
        return next((str(r) for r in of[1:] if not r.holds(seen)), None)
    if origin in (Union, types.UnionType):
        rules = [broken(value, each) for each in of]
        # Of several kinds, the rule that the value nearly keeps: a number out of range.
        near = [r for r in rules if r and r[:4] != "be (" and r[3:] not in _TYPES]
        return None if None in rules else (near or [f"be {words(kind)}"])[0]
    if origin is Literal:
        known = any(value == each and type(value) is type(each) for each in of)
        return None if known else f"be one of {', '.join(map(str, of))}"
    if origin in (tuple, Sequence):
        return _broken_entry(value, kind)
    if kind in (float, int):
        if not _is_number(value) or (kind is int and not _is_whole(value)):
            return f"be {_NAMES[kind]}"
        if kind is float and not abs(value) <= float(np.finfo(np.float32).max):
            return "be finite in float32"
        return None
    if kind in _NAMES:
        is_it = isinstance(value, kind) or (kind is bool and isinstance(value, np.bool))
        return None if is_it else f"be {_NAMES[kind]}"
    return None


def _broken_entry(value: Any, kind: Any) -> str | None:
    of = get_args(kind)
    if not isinstance(value, tuple | list | np.ndarray):
        return f"be {words(kind)}"
    if get_origin(kind) is tuple and of[-1] is not Ellipsis:
        if len(value) != len(of):
            return f"be {words(kind)}"
    else:
        of = of[:1] * len(value)
    rules = (broken(each, own) for each, own in zip(value, of, strict=True))
    return next((f"{rule} in every entry" for rule in rules if rule), None)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | np.bool) or np.ndim(value):
        return False
    return isinstance(value, int | float | np.number) or hasattr(value, "dtype")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) or (
        hasattr(value, "dtype") and np.issubdtype(value.dtype, np.integer)
    )


def words(kind: Any) -> str:
    """A kind in words: "an integer at least 1 or None"."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        rule = str(of[1]).removeprefix("be ").removeprefix("lie ")
        if of[0] is str:  # of some names, or a name: text, which need not be said
            return rule
        return words(of[0]) + (f" {rule}" if isinstance(of[1], Range) else "")
    if origin in (Union, types.UnionType):
        return " or ".join(map(words, of))
    if origin is Literal:
        return " or ".join(map(str, of))
    if origin in (tuple, Sequence):
        each = [words(k) for k in of if k is not Ellipsis]
        return f"({', '.join(each)}, ...)" if len(each) == 1 else f"({', '.join(each)})"
    return "a tuple" if kind is tuple else _NAMES.get(kind, "anything")


def plain(kind: Any) -> type:
    """The type that a kind's values have, without None; object if there are several."""
    if get_origin(kind) is Annotated:
        return plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        found = {plain(k) for k in get_args(kind)} - {types.NoneType}
        return found.pop() if len(found) == 1 else object
    if get_origin(kind) is Literal:
        return str
    return get_origin(kind) or (kind if isinstance(kind, type) else object)


@functools.cache
def kinds_of(thing: Callable[..., Any]) -> Mapping[str, Any]:
    """Name -> kind of a function's parameters or a class's fields.

    Empty if an annotation cannot be read: its author has to check by hand.
    """
    try:
        return get_type_hints(inspect.unwrap(thing), include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def require_all(
    where: str, values: Mapping[str, Any], kinds: Mapping[str, Any]
) -> None:
    """Applies `require` to each value of known kind; `where` precedes its name.

    Raises:
      ValueError: as `require`.
    """
    for name, value in values.items():
        if name in kinds:
            require(f"{where}{name}", value, kinds[name])


def checked(function: F) -> F:
    """Checks a function's keyword arguments against its annotations.

    Raises:
      ValueError: when it is called, "FUNCTION: NAME must RULE, got VALUE".
    """

    @functools.wraps(function)
    def call(*args, **settings):
        require_all(f"{function.__name__}: ", settings, kinds_of(function))
        return function(*args, **settings)

    return call  # type: ignore[return-value]
