"""Data sets that a user's own function gives: arrays, tasks of arrays, a `Source`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxcl.checks import called, imported
from jaxcl.data.arrays import NAMES, from_parts
from jaxcl.data.consistent import require_source
from jaxcl.data.own_tasks import from_tasks
from jaxcl.data.reading import SPLIT, Reading, require_effect
from jaxcl.data.source import Source


def from_function(path: str, reading: Reading, cache_dir: str | None) -> Source:
    """Makes a data set by calling "package.module:function" without arguments.

    The function returns a mapping with x_train, y_train and perhaps x_test, y_test, a
    tuple of these two or four, a list of such or a mapping of names to such, which are
    tasks (see `jaxcl.data.from_tasks`), or a `Source`.

    Raises:
      ValueError: the function cannot be imported or called, or returns something else,
        or a `Source` that contradicts itself; as `from_arrays`.
    """
    given = called(path, imported(path, "dataset"))
    if _are_tasks(given):
        try:
            source = from_tasks(given, reading=reading, cache_dir=cache_dir)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return source._replace(name=path)
    if isinstance(given, Source):
        require_source(given)
        require_effect(reading, f"{path}, which gives a Source", *SPLIT)
        return given
    if isinstance(given, tuple) and len(given) in (2, 4):
        given = dict(zip(NAMES, given, strict=False))
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{path} must give (x_train, y_train), (x_train, y_train, x_test, y_test), "
            "a mapping with these names, a list of tasks of such, or a Source, it "
            f"gives {type(given).__name__}"
        )
    found = {k: given[k] for k in NAMES if k in given}
    others = [str(k) for k in given if k not in found]
    return from_parts(path, found, others, reading, cache_dir)


def _are_tasks(given: Any) -> bool:
    """A list, or a mapping of names to tuples or mappings; arrays are one data set."""
    if isinstance(given, Mapping):
        return bool(given) and all(
            isinstance(one, tuple | list | Mapping) and name not in NAMES
            for name, one in given.items()
        )
    return isinstance(given, list)
