"""Rewrites the words of a command line before its flags are parsed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jaxcl import strategies
from jaxcl.benchmark import load
from jaxcl.fields import literal

CONFIGS = Path(__file__).parents[2] / "configs"
"""The configs that this package ships."""


@contextmanager
def without_logging() -> Iterator[None]:
    """absl's log is off inside: ml_collections logs beside the error it raises."""
    log = logging.get_absl_logger()
    log.disabled, before = True, log.disabled
    try:
        yield
    finally:
        log.disabled = before


def one_line(error: Exception) -> str:
    """One line for what went wrong while the flags were parsed."""
    text = str(error).strip() or repr(error)
    if text.startswith("flag --config=None:"):
        return "--config is needed: not given, or its get_config() returned None"
    # ml_collections puts a traceback in some messages. The last line has the error
    # itself; the exception's name is cut off it.
    last = text.splitlines()[-1] if "Traceback" in text else " ".join(text.split())
    return re.sub(r"^\s*(\w*Error: )?", "", last)


def written_out(argv: Sequence[str]) -> list[str]:
    """A command line with its config as FILE:ROW,VARIANT.

    ``--config`` may name a shipped config ("digits:ewc"). ``--config.strategy`` may
    name a strategy: its row, with the row's settings, then becomes the config's row.
    ``--config.model.name`` may name a model: its fields then replace those of the
    config's model. A run on own data bears their name, not the config's.

    Raises:
      ValueError: an unknown strategy or config.
    """
    if taken(list(argv), "config.row")[1] is not None:
        raise ValueError("a row is named with --config=FILE:ROW, its settings with it")
    _require_once(argv)
    argv, strategy = taken(of_data(of_model(list(argv))), "config.strategy")
    argv, config = taken(argv, "config")
    if config is None:
        return argv
    name, _, argument = config.partition(":")
    if strategy is not None:
        row, variants = split(argument)
        if strategies.strategy_name(strategies.method(row)) != strategy:
            row = strategies.row_of(strategy)
        argument = ",".join([row, *variants])
    written = f"--config={shipped(name)}" + (f":{argument}" if argument else "")
    return [*argv[:1], written, *argv[1:]]


def _require_once(argv: Sequence[str]) -> None:
    """Refuses a field or a config that is given twice: tuples would be joined."""
    names = [word.lstrip("-").partition("=")[0] for word in argv[1:] if word[:1] == "-"]
    once = [name for name in names if f"{name}.".startswith("config.")]
    twice = [name for name in once if once.count(name) > 1]
    if twice:
        raise ValueError(f"--{twice[0]} is given twice")


def split(argument: str) -> tuple[str, list[str]]:
    """The row that a config's argument names ("bp" if none), and its other parts."""
    parts = [part for part in argument.split(",") if part]
    named = [part for part in parts if strategies.is_row(part)]
    return (named or ["bp"])[0], [part for part in parts if part not in named[:1]]


def shipped(name: str) -> str:
    """The file of a shipped config, from its name; a path is returned as it is.

    Raises:
      ValueError: no shipped config has this name.
    """
    file = CONFIGS / f"{name}.py"
    if not name.isidentifier() or Path(name).is_file():
        return name
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.py")))
        raise ValueError(f"no config {name!r}; known: {known}, or a file's path")
    return str(file)


def of_model(argv: list[str]) -> list[str]:
    """A command line that names a model, with all its fields as --model=NAME=VALUE.

    The flags of the config know only the fields of the config's own model, so they
    cannot parse the fields of another one.
    """
    model = "config.model."
    if not any(word.lstrip("-").startswith(f"{model}name") for word in argv[1:]):
        return argv
    given = []
    for word in list(argv[1:]):
        name = word.partition("=")[0].lstrip("-")
        if word.startswith("-") and name.startswith(model):
            argv, value = taken(argv, name)
            given.append(f"--model={name.removeprefix(model)}={value}")
    return [*argv, *given]


def of_data(argv: list[str]) -> list[str]:
    """A command line whose run bears the name of the own data that it names.

    Else photographs under ``--config=digits`` would be headed "digits", and lie among
    its results.
    """
    kind, colon, where = (taken(argv, "config.data.dataset")[1] or "").partition(":")
    if not colon or taken(argv, "config.name")[1] is not None:
        return argv
    path = Path(where)
    plain = {"folder": path.name, "npz": path.stem, "tfds": where}
    own = plain.get(kind, f"{kind}_{where}")
    name = re.sub(r"[^\w-]+", "_", own).strip("_") or "own"
    return [*argv, f"--config.name={name}"]


def taken(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    """Splits off a flag, "--x=1" or "--x 1": the other words, and its value."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in (f"-{flag}", f"--{flag}"):
            after = i + 1 if equals else i + 2
            value = value if equals else "".join(argv[i + 1 : after])
            return argv[:i] + argv[after:], value
    return argv, None


def unknown_field(argv: list[str]) -> str:
    """A message on the first --config.x.y that the config lacks, with those it has.

    Raises:
      LookupError: the config has all of them.
    """
    given = dict(a.lstrip("-").partition("=")[::2] for a in argv[1:])
    file, _, argument = given.get("config", "").partition(":")
    for key in given:
        if not file or not key.startswith("config."):
            continue
        config = load(Path(file)).get_config(argument)
        at: object = config
        for i, part in enumerate(key.split(".")[1:], start=2):
            if not isinstance(at, ConfigDict) or part not in at:
                known = ", ".join(sorted(at)) if isinstance(at, ConfigDict) else ""
                known = known or "none"
                if key.startswith("config.method."):
                    known += f"; {_why_unknown(config.row)}"
                where = ".".join(key.split(".")[: i - 1])
                return f"--{key}: {where} has no field {part!r}; it has: {known}"
            at = at[part]
    raise LookupError


def _why_unknown(row: str) -> str:
    """What to do where a row's method has no such setting."""
    own = inspect.signature(strategies.method(row).factory).parameters.values()
    star = [p.name for p in own if p.kind is p.VAR_KEYWORD]
    if star:
        return f"{row} takes **{star[0]}: write its settings out"
    return "name the row that it is of, --config=FILE:ROW"


def for_rows(texts: Sequence[str], rows: Sequence[str]) -> list[tuple[int, str, Any]]:
    """What ``--for=ROW:FIELD=VALUE`` sets: each row's place, the field, its value.

    Values are read as Python literals; what is no literal is a string.

    Raises:
      ValueError: another form, a row that is not among the rows, a field twice, or one
        that says which row or network it is.
    """
    found: dict[tuple[int, str], Any] = {}
    for text in texts:
        target, equals, value = text.partition("=")
        row, _, field = target.strip().rpartition(":")  # a row may be "package:name"
        if not (row and field and equals and value.strip()):
            raise ValueError(
                "--for must be ROW:FIELD=VALUE, as hat:method.strength=0.75, "
                f"got {text!r}"
            )
        if row not in rows:
            raise ValueError(f"--for={text}: the rows are {', '.join(rows)}")
        field = field.removeprefix("config.")
        if field in ("name", "row", "rows", "strategy", "model.name"):
            raise ValueError(f"--for={text}: {field} is no field of one row alone")
        key = rows.index(row), field
        if key in found:
            raise ValueError(f"--for gives {row}:{field} twice")
        found[key] = literal(value)
    return [(place, field, value) for (place, field), value in found.items()]


def counts(flag: str, texts: Sequence[str]) -> list[int]:
    """The numbers of a flag's list, in order, each once.

    Raises:
      ValueError: there is none, or one is no number of at least 1.
    """
    try:
        found = sorted({int(text) for text in texts})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        given = ",".join(texts)
        raise ValueError(f"--{flag} must be numbers of at least 1, got {given!r}")
    return found
