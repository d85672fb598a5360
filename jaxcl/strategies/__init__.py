"""The table of methods, read by all code that runs, compares, reports or draws them.

A new method is one file with a factory ``(setup, *, settings) -> Strategy``, and one
line in `METHODS`. A method from elsewhere is given by its import path,
"package.module:factory", wherever a row's name is allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from jax.errors import JAXTypeError

from jaxcl import schema
from jaxcl.checks import imported, is_worded, line_of
from jaxcl.contract import Strategy
from jaxcl.strategies._chained import chain_factories
from jaxcl.strategies.agem import agem
from jaxcl.strategies.er import derpp, er
from jaxcl.strategies.ewc import ewc
from jaxcl.strategies.finetune import finetune
from jaxcl.strategies.frozen import frozen
from jaxcl.strategies.gpm import gpm
from jaxcl.strategies.hat import hat
from jaxcl.strategies.lwf import lwf
from jaxcl.strategies.mas import mas
from jaxcl.strategies.ncm import ncm
from jaxcl.strategies.ol import ol
from jaxcl.strategies.owm import owm
from jaxcl.strategies.pca import pca
from jaxcl.strategies.si import si
from jaxcl.strategies.slda import random_features, slda
from jaxcl.types import Setup

# How a method keeps what it has learned; "elsewhere": its factory is from outside.
FAMILIES = (
    *("baseline", "constraint", "division", "memory", "features"),
    *("head", "elsewhere"),
)


class Method(NamedTuple):
    """A row of a comparison.

    Attributes:
      row: its name on the command line, in configs and in results.
      factory: ``(setup, *, settings) -> Strategy``.
      family: one of `FAMILIES`.
      label: its name in tables and figures.
      colour: in figures, "#RRGGBB"; None for a method from elsewhere, which gets a
        spare colour.
      presets: field of a config -> the value that this method needs.
    """

    row: str
    factory: Callable[..., Strategy]
    family: str
    label: str
    colour: str | None
    presets: Mapping[str, Any] = {}


_FROZEN_NCM = chain_factories(frozen, ncm)
_FROZEN_SLDA = chain_factories(frozen, slda)
# Rows that use no trained network still take one step per task, as a formality.
_UNTRAINED = {
    "train.epochs": 1,
    "train.max_steps": 1,
    "train.patience": None,
    "train.select": "last",
}
_ON_PIXELS = {"model": {"name": "linear"}, **_UNTRAINED}

# In the order of a table. A family shares a hue: baselines are grey, penalties blue to
# teal, projections green, HAT purple, memories red to orange. Lightness separates them
# under common colour deficiencies, and every bar and panel also carries its name.
_TABLE = (
    Method("bp", finetune, "baseline", "BP", "#B3B3B3", {"train.select": "last"}),
    Method(
        "bp_star",
        finetune,
        "baseline",
        "BP*",
        "#8A8A8A",
        {"train.select": "best", "train.select_metric": "accuracy"},
    ),
    Method("bp_star_star", frozen, "baseline", "BP**", "#5C5C5C"),
    Method(
        "random_frozen",
        frozen,
        "baseline",
        "Random",
        "#C9B79C",
        {"epochs": 0},
    ),
    Method(
        "linear",
        finetune,
        "baseline",
        "Linear",
        "#8C7B62",
        {"model": {"name": "linear"}, "train.select": "last"},
    ),
    Method("ewc", ewc, "constraint", "EWC", "#0072B2"),
    Method("si", si, "constraint", "SI", "#56B4E9"),
    Method("mas", mas, "constraint", "MAS", "#332288"),
    Method("lwf", lwf, "constraint", "LwF", "#44AA99"),
    Method("owm", owm, "division", "OWM", "#999933"),
    Method("gpm", gpm, "division", "GPM", "#117733"),
    Method("hat", hat, "division", "HAT", "#AA4499"),
    Method("agem", agem, "memory", "A-GEM", "#882255"),
    Method("er", er, "memory", "ER", "#E69F00"),
    Method("derpp", derpp, "memory", "DER++", "#D55E00"),
    Method(
        "ol",
        ol,
        "features",
        "OL",
        "#EE88AA",
        {"train.select": "last", "train.patience": None},
    ),
    Method(
        *("pca", pca, "features", "PCA", "#B25776"),
        {"train.select": "last", "train.patience": None},
    ),
    Method("bp_ncm", ncm, "head", "BP + NCM", "#6D9EEB", {"train.select": "last"}),
    Method("bp_slda", slda, "head", "BP + SLDA", "#1C4587", {"train.select": "last"}),
    Method("bp_star_star_ncm", _FROZEN_NCM, "head", "BP** + NCM", "#93C47D"),
    Method("bp_star_star_slda", _FROZEN_SLDA, "head", "BP** + SLDA", "#274E13"),
    Method(
        *("random_slda", _FROZEN_SLDA, "head", "Random + SLDA", "#B45F06"),
        {"epochs": 0, **_UNTRAINED},
    ),
    Method("raw_ncm", ncm, "head", "Pixels + NCM", "#C27BA0", _ON_PIXELS),
    Method("raw_slda", slda, "head", "Pixels + SLDA", "#741B47", _ON_PIXELS),
    Method(
        *("random_features", random_features, "head", "Random features + SLDA"),
        *("#F1C232", _ON_PIXELS),
    ),
    Method("joint", finetune, "baseline", "Joint", "#1A1A1A", {"joint": True}),
)
METHODS: dict[str, Method] = {method.row: method for method in _TABLE}
_FACTORIES = {method.factory.__name__: method.factory for method in _TABLE}


def is_row(name: str) -> bool:
    """Whether a name is a row of `METHODS` or has the form of an import path."""
    return name in METHODS or ":" in name


def method(row: str) -> Method:
    """The method that a row names.

    Args:
      row: of `METHODS`, or "package.module:factory", which is imported.

    Raises:
      ValueError: an unknown row, or an import path that leads nowhere.
    """
    if ":" in row:
        return Method(row, factory(row), "elsewhere", label(row), None)
    if row not in METHODS:
        raise ValueError(
            f"unknown method {row!r}; known: {', '.join(METHODS)}, or an import path "
            "'package.module:factory'"
        )
    return METHODS[row]


def label(row: str) -> str:
    """The name of a row in tables and figures; imports nothing, refuses nothing."""
    return METHODS[row].label if row in METHODS else row.rpartition(":")[2]


def family(row: str) -> str:
    """The family of a row; imports nothing, refuses nothing."""
    return METHODS[row].family if row in METHODS else "elsewhere"


def strategy_name(found: Method) -> str:
    """The name under which `factory` finds a method's factory."""
    return found.row if ":" in found.row else found.factory.__name__


def row_of(strategy: str) -> str:
    """The first row with a strategy's factory; for an import path, the path itself.

    Raises:
      ValueError: an unknown strategy.
    """
    build = factory(strategy)
    if ":" in strategy:
        return strategy
    return next(row for row, m in METHODS.items() if m.factory is build)


def factory(name: str) -> Callable[..., Strategy]:
    """Looks a strategy's factory up.

    Args:
      name: of a factory in the table, or "package.module:factory" for one from
        elsewhere.

    Returns:
      The factory.

    Raises:
      ValueError: an unknown name, or an import path that leads nowhere.
    """
    if ":" not in name:
        if name not in _FACTORIES:
            raise ValueError(
                f"unknown strategy {name!r}; known: {', '.join(sorted(_FACTORIES))}, "
                "or an import path 'package.module:factory'"
            )
        return _FACTORIES[name]
    return cast(Callable[..., Strategy], imported(name, "strategy"))


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
        own = signature.parameters.values()
        known = ", ".join(p.name for p in own if p.kind is p.KEYWORD_ONLY)
        raise ValueError(
            f"strategy {name!r}: {error}; its settings are: {known or 'none'}"
        ) from error
    schema.require_all(f"{name}: ", settings, schema.kinds_of(build))
    try:
        made = build(setup, **settings)
    except Exception as error:
        if isinstance(error, JAXTypeError) or is_worded(error):  # of a traced setting
            raise
        raise ValueError(
            f"strategy {name!r} raised {error!r}{line_of(error)}"
        ) from error
    if not isinstance(made, Strategy):
        raise ValueError(f"strategy {name!r} must make a Strategy, it made {made!r}")
    return made
