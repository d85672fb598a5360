"""The rows of a command that trains several methods, and their configs."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from jaxcl.benchmark import load

from . import inert, launch
from .config import replace_model, set_field
from .runs.arguments import for_rows, split

flags.disclaim_key_flags()  # flags defined below belong to the calling command


def define_rows(default: Sequence[str] | None, told: str) -> flags.FlagHolder:
    """Defines ``--strategies``, a list of rows, and ``--for``."""
    flags.DEFINE_multi_string(
        "for", [], "ROW:FIELD=VALUE, a field of one row alone; may be given many times."
    )
    return launch.define_list("strategies", default, told)


def row_configs(rows: Sequence[str]) -> list[ConfigDict]:
    """The config of each row: the file's, changed by the command line.

    A field on the command line applies to every row. A setting of a method,
    ``--config.method.x``, applies only to the row that ``--config=FILE:ROW`` names.
    ``--for`` has the last word on one row.

    Raises:
      ValueError: a field that a row's config does not have; settings of a method that
        is not among the rows.
    """
    if len(set(rows)) < len(rows) or not rows or not all(rows):
        raise ValueError(f"rows must be distinct, at least one, got {', '.join(rows)}")
    file, argument = launch.config_file()
    named, variants = split(argument)
    given = inert.given_fields()
    if named not in rows and any(key.startswith("method.") for key in given):
        raise ValueError(
            f"--config.method... is set for {named!r}, which is not among the rows: "
            f"{', '.join(rows)}"
        )
    module, found = load(file), []
    for row in rows:
        config = module.get_config(",".join([row, *variants]))
        for key, value in given.items():
            if not key.startswith("method.") or row == named:
                set_field(config, key, value)
        replace_model(config, launch.model_fields())
        found.append(config)
    for place, field, value in for_rows(flags.FLAGS["for"].value, rows):
        set_field(found[place], field, value)
        inert.refuse([field], [found[place]])
    inert.refuse(given, found)
    return found
