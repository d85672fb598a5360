"""The registry: a name to a factory ``(setup, **settings) -> Strategy``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

from jaxcl.strategies.agem import agem
from jaxcl.strategies.er import derpp, er
from jaxcl.strategies.ewc import ewc
from jaxcl.strategies.finetune import finetune
from jaxcl.strategies.frozen import frozen
from jaxcl.strategies.gpm import gpm
from jaxcl.strategies.hat import hat
from jaxcl.strategies.lwf import lwf
from jaxcl.strategies.mas import mas
from jaxcl.strategies.owm import owm
from jaxcl.strategies.si import si
from jaxcl.types import Setup, Strategy

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "finetune": finetune,
    "frozen": frozen,
    "ewc": ewc,
    "si": si,
    "mas": mas,
    "lwf": lwf,
    "gpm": gpm,
    "owm": owm,
    "agem": agem,
    "er": er,
    "derpp": derpp,
    "hat": hat,
}


def factory(name: str) -> Callable[..., Strategy]:
    """Looks a strategy's factory up.

    Args:
      name: a registered name, or "package.module:factory" for one from elsewhere.

    Returns:
      The factory.

    Raises:
      ValueError: an unknown name, or an import path that leads nowhere.
    """
    if ":" not in name:
        if name not in STRATEGIES:
            raise ValueError(
                f"unknown strategy {name!r}; known: {', '.join(sorted(STRATEGIES))}, "
                "or an import path 'package.module:factory'"
            )
        return STRATEGIES[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"strategy {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"strategy {name!r} is {found!r}, not a factory")
    return cast(Callable[..., Strategy], found)


def make(name: str, setup: Setup, settings: dict[str, Any]) -> Strategy:
    """Builds a strategy by name; settings it does not have are refused by name.

    Raises:
      ValueError: unknown strategy or setting, or a value its factory refuses.
    """
    build = factory(name)
    signature = inspect.signature(build)
    try:
        signature.bind(setup, **settings)
    except TypeError as error:
        known = ", ".join(
            p.name
            for p in signature.parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        )
        raise ValueError(
            f"strategy {name!r}: {error}; its settings are: {known or 'none'}"
        ) from error
    return build(setup, **settings)
