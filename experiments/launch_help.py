"""What ``--help`` tells of the method and the model that ``--config`` names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcl.benchmark import load, required
from jaxcl.fields import FIELDS
from jaxcl.nn import building
from jaxcl.schema import kinds_of, words

from .config import method_of, replace_model
from .runs.arguments import taken


def settings(argv: Sequence[str]) -> list[str]:
    """A line per setting of the method and the model, with meaning, kind and default.

    Args:
      argv: a command line, from `experiments.runs.arguments.written_out`.

    Returns:
      The lines; none if there is no ``--config``. Defaults are those of the config.
    """
    rest, named = taken(list(argv), "config")
    if not named:
        return []
    file, _, argument = named.partition(":")
    config = load(Path(file)).get_config(argument)
    of_model = [w.partition("=")[2] for w in rest if w.startswith("--model=")]
    replace_model(config, of_model)
    factory = method_of(config).factory
    model = building.class_of(config.model.name)
    fields = building.settings_of(config.model.name)
    needed = [k for k, v in fields.items() if v is building.REQUIRED]
    return [
        f"\nThe method and the model of {config.row} in {config.name}:",
        *_lines("method", config.method.to_dict(), factory, required(factory)),
        *_lines("model", config.model.to_dict(), model, needed),
    ]


def _lines(
    node: str,
    values: Mapping[str, Any],
    build: Callable[..., Any],
    needed: Sequence[str],
) -> Iterator[str]:
    kinds, told = dict(kinds_of(build)), _meanings(build)
    if isinstance(build, type):  # a class that is no dataclass annotates its arguments
        kinds |= kinds_of(build.__init__)
    for name, value in values.items():
        if f"{node}.{name}" in FIELDS:
            continue
        kind = words(kinds[name]) if name in kinds else "anything"
        none = value is None and name in needed
        default = "to be given" if none else f"default {value!r}"
        about = f"{told[name]} " if name in told else ""
        yield f"--config.{node}.{name}: {about}({kind}; {default})"


def _meanings(build: Callable[..., Any]) -> dict[str, str]:
    """Argument -> first sentence of its entry in a docstring of Google's style."""
    found: dict[str, str] = {}
    documents = [inspect.getdoc(build)]
    if isinstance(build, type):
        documents.append(inspect.getdoc(build.__init__))
    for text in filter(None, documents):
        for section in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
            if not section.startswith(("Args:", "Attributes:", "Arguments:")):
                continue
            body = inspect.cleandoc("\n" + section.partition("\n")[2])
            for entry in re.split(r"^(?=\S)", body, flags=re.MULTILINE):
                names, colon, about = entry.partition(":")
                sentence = re.split(r"\.\s+(?![a-z])", " ".join(about.split()))[0]
                for name in names.split(",") if colon else ():
                    name = re.sub(r"\(.*", "", name).strip(" *`")
                    found.setdefault(name, sentence.rstrip("."))
    return found
