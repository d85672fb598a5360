"""Helpers to write the config file of a benchmark: fields, rows, variants, layers.

A file in `configs/`, or one of a user's own, holds ``get_config(argument)``. It calls
`base`, fills in the benchmark's fields and ends with `finish`, in which more specific
settings override more general ones:

    base < benchmark < variant < method < method in that variant < command line

Needs ml_collections, as the commands do; ``import jaxcl`` does not import it.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from jaxcl import schema, strategies
from jaxcl.fields import base
from jaxcl.kinds import settings_of
from jaxcl.strategies import METHODS

__all__ = ["Settings", "Variant", "base", "defaults", "finish", "load", "required"]
__all__ += ["variant"]

Settings = Mapping[str, Any]
"""A field of a config, or a setting of its method -> its value.

A dotted key ("optimizer.lr") or one that a config has ("joint") is a field: papers
train some methods differently. Any other key is a setting of the method.
"""


class Variant(NamedTuple):
    """A changed benchmark: smaller, another scenario, or another paper's network.

    Attributes:
      fields: field -> value, for all rows; a method's own preset overrides it.
      methods: row -> settings in this variant, which override both.
    """

    fields: Mapping[str, Any] = {}
    methods: Mapping[str, Settings] = {}


def finish(
    config: ConfigDict,
    row: str,
    methods: Mapping[str, Settings],
    chosen: Variant | None = None,
) -> ConfigDict:
    """Turns a benchmark's config into that of one row; call it once, at the end.

    Args:
      config: from `base`, filled in.
      row: one of `METHODS`, or an import path "package.module:factory".
      methods: row -> its settings in this benchmark.
      chosen: the variant, if any; a method's settings override its fields.

    Returns:
      The config; ``config.method`` lists every setting of the strategy, with None for
      a required setting that is not given.

    Raises:
      ValueError: an unknown row or field.
    """
    found = strategies.method(row)
    config.row, config.strategy = row, strategies.strategy_name(found)
    method = defaults(found.factory)
    chosen = chosen or Variant()
    _set(config, method, chosen.fields)
    of_row = (found.presets, methods.get(row, {}), chosen.methods.get(row, {}))
    for settings in of_row:
        _set(config, method, settings)
    config.method = ConfigDict({k: settable(v) for k, v in method.items()})
    return config


def _set(config: ConfigDict, method: dict[str, Any], settings: Settings) -> None:
    for key, value in settings.items():
        if "." not in key and key not in config:
            method[key] = value
            continue
        if key == "model":  # another network: the old one's fields are dropped
            model: Any = config.model
            common = base("").to_dict()["model"] | {"dtype": model.dtype}
            config.model = ConfigDict(common | dict(value))
            continue
        node, _, leaf = key.rpartition(".")
        # A model has fields of its own: only its builder knows them.
        fields: Any = config[node] if node else config
        if node != "model" and leaf not in fields:
            raise ValueError(f"{config.name} has no field {key!r}")
        config.update_from_flattened_dict({key: value})


def settable(value: Any) -> Any:
    """Replaces None by a field that the command line may set to any value."""
    return config_dict.placeholder(object) if value is None else value


def defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """A factory's settings with their defaults; a required one has None.

    A required setting that is annotated as a plain type takes values of that type.
    """
    kinds, found = schema.kinds_of(factory), {}
    for p in settings_of(factory):
        of = schema.plain(kinds.get(p.name))
        required = p.default is p.empty
        typed = required and of in (float, int, str, bool)
        default = None if required else p.default
        found[p.name] = config_dict.placeholder(of) if typed else default
    return found


def required(factory: Callable[..., Any]) -> list[str]:
    """Names of a factory's settings that have no default."""
    return [p.name for p in settings_of(factory) if p.default is p.empty]


def variant(argument: str, names: Iterable[str] = ()) -> tuple[str, str]:
    """Splits a config file's argument "row", "variant" or "row,variant".

    Args:
      argument: what follows the colon of ``--config=FILE:argument``.
      names: the variants the file has.

    Returns:
      The row ("bp" if none is given) and the variant ("" if none is given).

    Raises:
      ValueError: a part is neither a row nor a variant, or is given twice.
    """
    names = tuple(names)
    row, chosen = "", ""
    for part in filter(None, argument.split(",")):
        if part in names and not chosen:
            chosen = part
        elif strategies.is_row(part) and not row:
            row = part
        else:
            near = difflib.get_close_matches(part, (*METHODS, *names), 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"config argument {argument!r}: {part!r} is no row "
                f"({', '.join(METHODS)}, or an import path 'package.module:factory') "
                f"and no variant ({', '.join(names) or 'this file has none'}){meant}"
            )
    return row or "bp", chosen


def load(file: Path) -> ModuleType:
    """A config file as a module, with its ``get_config`` and perhaps a ``sweep``."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
