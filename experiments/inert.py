"""Fields on a command line that would change nothing, which are refused.

A config file may set such a field: a benchmark's variants switch patience off by one
field. Who types one expects that it does something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxcl.fields import FIELDS

_PATIENCE = (lambda c: c.train.patience is not None, "train.patience")
# Field -> whether a config uses it, and the field that makes it do so.
NEEDS: dict[str, tuple[Callable[[ConfigDict], bool], str]] = {
    "train.lr_factor": _PATIENCE,
    "train.lr_min": _PATIENCE,
    "train.patience_metric": _PATIENCE,
    "train.select_metric": (lambda c: c.train.select == "best", "train.select=best"),
    "optimizer.lr_floor": (
        lambda c: c.optimizer.decay_per_task != 1,
        "optimizer.decay_per_task",
    ),
}


def given_fields() -> dict[str, Any]:
    """The config's fields that the command line sets, and their values."""
    return config_flags.get_override_values(flags.FLAGS["config"])


def refuse(given: Iterable[str], configs: Sequence[ConfigDict]) -> None:
    """Refuses a field that a command line gives and no config uses.

    Args:
      given: fields that the command line sets, or varies.
      configs: of the rows, or of a sweep's runs, with these fields.

    Raises:
      ValueError: the message names the field, and what it needs.
    """
    given = set(given)
    for field, (used, needed) in NEEDS.items():
        if field not in given:
            continue
        values = [_value(config, field) for config in configs]
        changed = any(value != FIELDS[field].default for value in values)
        if changed and not any(map(used, configs)):
            raise ValueError(
                f"config.{field} changes nothing without config.{needed}, got "
                f"{values[0]!r}"
            )


def _value(config: ConfigDict, field: str) -> Any:
    part, name = field.split(".")
    inner: Any = config[part]
    return inner[name]
