"""Describes the content of a value in text that is the same in every process.

A `Problem` holds functions: an optimizer is two closures over its learning rate. Two
optimizers are distinguished by what they close over, down to numbers and arrays.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxcl.ops.trees import is_key

Node = str | dict[str, "Node"]

_SCALARS = (type(None), bool, int, float, complex, str, bytes, enum.Enum, np.generic)
_BUILTIN = (type, types.ModuleType, types.BuiltinFunctionType, np.ufunc)
# A clone's own commands are not installed; their changes are told as its commit.
_OWN = ("experiments.", "configs.", "jaxcl.")
_INSTALLED = tuple(
    str(Path(path).resolve())
    for path in (
        sysconfig.get_path("purelib"),
        sysconfig.get_path("stdlib"),
        Path(__file__).parents[1],
    )
)


def describe(value: Any) -> dict[str, str]:
    """Describes a value by lines: place in the value -> content there.

    Args:
      value: numbers, text, arrays, containers, dataclasses, functions, objects.

    Returns:
      A line for each number, text and array (for a large one its shape and the hash of
      its content), and for each function its name and what it closes over. Equal parts
      are described once. Equal values have equal lines in every process.
    """
    return described(value)[0]


def described(value: Any) -> tuple[dict[str, str], dict[str, str]]:
    """As `describe`, and the files that the value's functions are in.

    Returns:
      The lines, and module -> hash of its file, of functions and classes that are not
      installed.
    """
    lines: dict[str, str] = {}
    told: set[str] = set()

    def tell(path: str, node: Node) -> None:
        if isinstance(node, str):
            lines[path] = node
            return
        digest = _digest(node)
        if digest in told and len(node) > 1:
            lines[path] = f"as before, {digest[:12]}"
            return
        told.add(digest)
        for name, part in node.items():
            tell(f"{path}{name}".lstrip("."), part)

    describer = _Describer()
    tell("", describer.node(value))
    return lines, describer.sources


def hash_of(data: Any) -> str:
    """SHA-256 of bytes, or of a contiguous array's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _digest(node: Node) -> str:
    return hash_of(json.dumps(node, sort_keys=True).encode())


class _Describer:
    """Describes each object once, and does not follow circular references."""

    def __init__(self):
        self._known: dict[int, Node] = {}
        self._kept: list[Any] = []  # else a freed id would become another object's
        self.sources: dict[str, str] = {}

    def node(self, value: Any) -> Node:
        if isinstance(value, _SCALARS):
            return repr(value)
        if id(value) not in self._known:
            self._kept.append(value)
            self._known[id(value)] = "itself"
            self._known[id(value)] = self._composite(value)
        return self._known[id(value)]

    def _composite(self, value: Any) -> Node:
        if isinstance(value, (np.ndarray, jax.Array)):
            return _array(value)
        if isinstance(value, Mapping):
            return self._parts({f".{k}": v for k, v in value.items()}, "{}")
        if isinstance(value, (set, frozenset)):
            return repr(sorted(map(repr, value)))
        if isinstance(value, (list, tuple)):
            return self._sequence(value)
        if isinstance(value, _BUILTIN):
            if isinstance(value, type):  # as of a model's modules in an NNX graph
                self._note_class(value)
            return _name(value)
        if isinstance(value, functools.partial):
            parts = {".call": value.func, ".args": value.args, ".of": value.keywords}
            return self._parts(parts, "")
        if isinstance(value, types.MethodType):
            return self._parts({".call": value.__func__, ".of": value.__self__}, "")
        if isinstance(value, types.FunctionType):
            return self._function(value)
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped):  # wrapped by jit or a custom derivative
            return self.node(wrapped)
        return self._object(value)

    def _parts(self, parts: Mapping[str, Any], empty: str) -> Node:
        nodes = {name: self.node(parts[name]) for name in sorted(parts)}
        return nodes or empty

    def _sequence(self, value: Any) -> Node:
        if hasattr(value, "_fields"):
            return self._parts({f".{k}": v for k, v in value._asdict().items()}, "()")
        if all(isinstance(part, _SCALARS) for part in value):
            whole = repr(tuple(value))
            short = f"{len(value)} values {hash_of(whole.encode())[:16]}"
            return whole if len(value) <= 64 else short
        return self._parts({f"[{i}]": part for i, part in enumerate(value)}, "()")

    def _function(self, fn: types.FunctionType) -> Node:
        cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
        parts = {f".{name}": _content(cell) for name, cell in cells}
        parts |= {".defaults": fn.__defaults__} if fn.__defaults__ else {}
        parts |= {f".{k}": v for k, v in (fn.__kwdefaults__ or {}).items()}
        if not fn.__code__.co_filename.startswith(_INSTALLED):
            parts[".numbers"] = _numbers(fn.__code__)
            self._note(fn.__module__, fn.__code__.co_filename)
        return {"": _name(fn)} | self._dict(self._parts(parts, ""))

    def _note(self, module: str, file: str | None) -> None:
        """Hashes a module's file, unless it is installed or of the interpreter."""
        known = not file or file.startswith(_INSTALLED) or module in self.sources
        if not known and Path(str(file)).is_file():
            self.sources[module] = hash_of(Path(str(file)).read_bytes())[:16]
            if not module.startswith(_OWN):
                self._note_helpers(module)

    def _note_helpers(self, module: str) -> None:
        """Notes the modules that a module imports from: what it calls may be there."""
        for value in [*vars(sys.modules.get(module, types)).values()]:
            if isinstance(value, types.ModuleType):
                name = value.__name__
            else:
                name = getattr(value, "__module__", None)
            helper = sys.modules.get(name) if isinstance(name, str) else None
            if helper is not None:
                self._note(helper.__name__, getattr(helper, "__file__", None))

    def _note_class(self, kind: type) -> None:
        for part in kind.__mro__:
            module = sys.modules.get(part.__module__)
            self._note(part.__module__, getattr(module, "__file__", None))

    def _object(self, value: Any) -> Node:
        self._note_class(type(value))
        if dataclasses.is_dataclass(value):
            # Flax adds these two to a module's own fields.
            names = {f.name for f in dataclasses.fields(value)} - {"parent", "name"}
            parts = {f".{name}": getattr(value, name, None) for name in names}
        else:
            parts = {f".{k}": v for k, v in getattr(value, "__dict__", {}).items()}
        return {"": _name(type(value))} | self._dict(self._parts(parts, ""))

    @staticmethod
    def _dict(node: Node) -> dict[str, Node]:
        return node if isinstance(node, dict) else {}


def _array(value: Any) -> str:
    if isinstance(value, Tracer):
        return f"traced {value.aval}"
    if is_key(value):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    kind = f"{array.dtype}{list(array.shape)}"
    if array.size <= 8:
        return f"{kind} {array.tolist()}"
    return f"{kind} {hash_of(array.reshape(-1).view(np.uint8))[:16]}"


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "?")
    return f"{module}.{name}".lstrip(".")


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _numbers(code: types.CodeType) -> tuple[Any, ...]:
    """The numbers written in a function: some user settings may be only there."""
    found: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _numbers(constant)
        elif isinstance(constant, (int, float, complex)):
            found.append(constant)
    return tuple(found)
