"""Conditions on settings, raised before anything is traced."""

from __future__ import annotations

import importlib
import math
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def require(holds: Any, message: str) -> None:
    """Refuses a setting that breaks a rule; a traced condition passes.

    A setting that differs between the seeds of a run (`Problem.settings`) reaches a
    factory as a tracer, after each of its values has been checked.

    Args:
      holds: whether the setting keeps the rule: a bool, or a traced one.
      message: quotes the value and the rule.

    Raises:
      ValueError: ``holds`` is False.
    """
    if not isinstance(holds, Tracer) and not holds:
        raise ValueError(message)


def require_told(value: Any, method: str, field: str) -> Any:
    """What a context says of its step, where a method reads it.

    Raises:
      ValueError: the context was made without it.
    """
    if value is None:
        raise ValueError(
            f"{method} reads ctx.{field}, which the context does not say: "
            f"jaxcl.context(..., {field}=...)"
        )
    return value


def require_range(name: str, value: Any, stop: int) -> None:
    """Refuses integers outside [0, stop); tracers pass.

    JAX clips an index out of range without a warning, inside jit and outside.

    Args:
      name: what the integers are, for the message.
      value: int or int[...].
      stop: one more than the largest allowed value.

    Raises:
      ValueError: an integer lies outside.
    """
    if isinstance(value, Tracer):
        return
    value = np.asarray(value)
    outside = value[(value < 0) | (value >= stop)]
    if outside.size:
        raise ValueError(f"{name} must lie in [0, {stop}), got {outside.ravel()[0]}")


def require_finite(value: Any, name: str) -> None:
    """Refuses NaN and infinity; tracers pass.

    Raises:
      ValueError: a value is NaN or infinite.
    """
    if isinstance(value, Tracer):
        return
    bad = int((~np.isfinite(np.asarray(value, np.float64))).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} that are NaN or infinite")


def require_statistics(of: Any, given: Any) -> None:
    """Refuses a step without the running statistics that a model keeps.

    Args:
      of: the model's state, or its shapes.
      given: the state that was given.

    Raises:
      ValueError: there is none, where the model has some.
    """
    if jax.tree.leaves(of) and not jax.tree.leaves(given):
        raise ValueError(
            "the model keeps running statistics (BatchNorm?), and none are given: pass "
            "model_state= to context, before_task and after_task, at first the one "
            "that came with the parameters, then out.model_state"
        )


def require_room(what: str, needed: int) -> None:
    """Refuses arrays larger than this machine's memory, before they are allocated.

    Args:
      what: names the arrays in the message, in the plural.
      needed: bytes, at least.

    Raises:
      ValueError: the memory is too small; the message gives both sizes.
    """
    has = _memory()
    if needed > has:
        raise ValueError(
            f"{what} need at least {needed / 1e9:.3g} GB, there are {has / 1e9:.3g} GB "
            "of memory"
        )


def bytes_of(shapes: Any) -> int:
    """Bytes that the arrays of a tree need, given their shapes and dtypes."""
    total = 0
    for leaf in jax.tree.leaves(shapes):
        # Keys have a dtype of their own.
        total += math.prod(leaf.shape) * int(getattr(leaf.dtype, "itemsize", 4))
    return total


def _memory() -> int:
    """Bytes of memory of all devices together; on a CPU, those of the host."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in devices]
        return sum(limits) if all(limits) else 2**63  # or nothing is known
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container may have less than its host
        has = min(has, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        pass
    return has


def line_of(error: Exception, *ours: Path) -> str:
    """The last line of a user's own code that an error passed through.

    Args:
      error: as caught.
      *ours: folders of code that is no user's, beside this package and what is
        installed.

    Returns:
      " (file:line)", or "" if it passed through none.
    """
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    libraries = [Path(sysconfig.get_path(kind)) for kind in kinds]
    others = (*ours, Path(__file__).parent, *libraries)
    own = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file()
        and not any(Path(frame.filename).is_relative_to(each) for each in others)
    ]
    return f" ({own[-1]})" if own else ""


def is_worded(error: Exception) -> bool:
    """Whether an error is a line of jaxcl's own about a setting, for its user to read.

    JAX, too, refuses shapes by a ValueError of one line: only where it was raised tells
    whether it says whose shapes they are.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, ValueError)
        and "\n" not in str(error).strip()
        and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
    )


def in_one_line(error: Exception) -> str:
    """What an error says, and its kind where the text alone may not tell it."""
    usual = isinstance(error, TypeError | ValueError | ZeroDivisionError)
    text = str(error) if usual else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def imported(path: str, what: str) -> Callable[..., Any]:
    """The function or class at "package.module:name".

    Args:
      path: as above.
      what: the function's or class's role, for the message.

    Raises:
      ValueError: it cannot be imported, or cannot be called.
    """
    module, _, name = path.partition(":")
    # A claim names functions beside it; a console script has them inside of jaxcl.
    if module.startswith("experiments.claims.") and "experiments" not in sys.modules:
        module = f"jaxcl.{module}"
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module raises
        raise ValueError(
            f"{what} {path!r} cannot be imported as 'package.module:name': {error}"
        ) from error
    if not callable(found):
        raise ValueError(f"{what} {path!r} is {found!r}, not a factory")
    return found


def called(path: str, build: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    """Calls a function or class from elsewhere; any error becomes a one-line message.

    Args:
      path: where ``build`` comes from, for the message.
      build: the function or class.
      *args: its positional arguments.
      **fields: its keyword arguments.

    Raises:
      ValueError: ``build`` raised; the message says what, and where.
    """
    try:
        return build(*args, **fields)
    except Exception as error:
        if is_worded(error):
            raise
        shown = [*map(repr, args), *(f"{k}={v!r}" for k, v in fields.items())]
        text = " ".join(f"{path}({', '.join(shown)}) raised {error!r}".split())
        raise ValueError(text + line_of(error)) from error
