"""What a config holds, and what it means: ml_collections in, a `Problem` out.

A *row* of a comparison is a strategy and the protocol settings that make it the method
of that name. A benchmark's file in `configs/` calls `base`, fills in its setting, and
ends with `finish(config, row, methods)`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict, config_dict

from jaxcl import strategies
from jaxcl.data import scenarios, sources
from jaxcl.nn.models import MODELS
from jaxcl.training.plan import Plan
from jaxcl.training.problem import Problem

# Row -> the strategy it is and the settings that make it so.
ROWS: dict[str, dict[str, Any]] = {
    "bp": {"strategy": "finetune", "train.select": "last"},
    "bp_star": {
        "strategy": "finetune",
        "train.select": "best",
        "train.select_metric": "accuracy",
    },
    "bp_star_star": {"strategy": "frozen"},
    "joint": {"strategy": "finetune", "joint": True},
    "ewc": {"strategy": "ewc"},
    "si": {"strategy": "si"},
    "mas": {"strategy": "mas"},
    "lwf": {"strategy": "lwf"},
    "gpm": {"strategy": "gpm"},
    "owm": {"strategy": "owm"},
    "agem": {"strategy": "agem"},
    "er": {"strategy": "er"},
    "derpp": {"strategy": "derpp"},
    "hat": {"strategy": "hat"},
}

OPTIMIZERS = ("sgd", "adam", "adamw")


def base(name: str) -> ConfigDict:
    """The fields every config has, at neutral values; see each comment.

    A field whose default is None takes the type that is written here.
    """
    optional = config_dict.placeholder
    return ConfigDict(
        {
            "name": name,
            "row": "",
            "strategy": "finetune",  # registered name or "package.module:factory"
            "method": {},  # the strategy's settings
            "seeds": (0, 1, 2, 3, 4),
            "joint": False,  # each task trains on all data so far
            "measure": "test",  # "valid": the matrix that settings are chosen by
            "seed_mode": "auto",  # seeds side by side: "vmap", in turn: "map"
            "rows": tuple(ROWS),  # what `compare` runs by default
            "data": {
                "dataset": "digits",
                "stream": "split",
                "scenario": "task",
                "num_tasks": 5,
                "classes_per_task": optional(int),
                "class_order": "fixed",
                "valid_fraction": 0.1,
                "stratified": False,  # hold out the same share of each class
                "first_permuted": True,
                "train_per_task": optional(int),
                "test_per_task": optional(int),
                "tasks": optional(tuple),  # (first, stop) of the stream's; None: all
                "mean": optional(tuple),  # per channel, in [0, 1]; None: the data's
                "std": optional(tuple),
            },
            "model": {"name": "mlp"},  # and the fields of that model
            "optimizer": {
                "name": "sgd",  # sgd, adam, adamw or "package.module:factory"
                "lr": 0.01,
                "momentum": 0.0,  # sgd
                "weight_decay": 0.0,
                "clip": optional(float),  # global norm of the gradient
            },
            "train": {
                "epochs": optional(int),
                "max_steps": optional(int),
                "batch_size": 64,
                "eval_batch_size": 256,
                "patience": optional(int),
                "lr_factor": 3.0,
                "lr_min": 1e-4,
                "patience_metric": "accuracy",
                "select": "last",
                "select_metric": "accuracy",
            },
            "checkpoint_every": 600.0,  # seconds
        }
    )


def finish(
    config: ConfigDict, row: str, methods: Mapping[str, Mapping[str, Any]]
) -> ConfigDict:
    """Makes a benchmark's config that of one row.

    Args:
      config: from `base`, filled in.
      row: one of `ROWS`.
      methods: row -> settings of its strategy. A dotted key ("optimizer.lr") sets a
        field of the config instead: papers train some methods otherwise.

    Returns:
      The config; ``config.method`` lists every setting of the strategy.

    Raises:
      ValueError: an unknown row.
    """
    if row not in ROWS:
        raise ValueError(f"unknown strategy {row!r}; known: {', '.join(ROWS)}")
    config.row = row
    preset = dict(ROWS[row])
    config.strategy = preset.pop("strategy")
    method = defaults(strategies.factory(config.strategy))
    for key, value in {**preset, **methods.get(row, {})}.items():
        if "." in key or key in config:
            config.update_from_flattened_dict({key: value})
        else:
            method[key] = value
    config.method = ConfigDict(method)
    return config


def defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """A factory's keyword settings with their defaults; required ones are left out."""
    return {
        p.name: p.default
        for p in inspect.signature(factory).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }


def variant(argument: str, names: tuple[str, ...]) -> tuple[str, str]:
    """Splits a config file's argument "row", "variant" or "row,variant".

    Args:
      argument: what follows the colon of ``--config=FILE:argument``.
      names: the variants the file has.

    Returns:
      The row ("bp" if none is given) and the variant ("" if none is given).

    Raises:
      ValueError: a part that is neither, or given twice.
    """
    row, chosen = "", ""
    for part in filter(None, argument.split(",")):
        if part in names and not chosen:
            chosen = part
        elif part in ROWS and not row:
            row = part
        else:
            raise ValueError(
                f"config argument {argument!r}: {part!r} is no row ({', '.join(ROWS)})"
                f" and no variant ({', '.join(names) or 'this file has none'})"
            )
    return row or "bp", chosen


def _require_values(config: ConfigDict, like: ConfigDict, path: str) -> None:
    """Refuses None where `like` has a value, which ConfigDict lets pass."""
    for name, default in like.items():
        if isinstance(default, ConfigDict):
            _require_values(config[name], default, f"{path}.{name}")
        elif default is not None and config[name] is None:
            raise ValueError(f"{path}.{name} needs a value, got None")


def problem(config: ConfigDict) -> Problem:
    """Builds what a config describes.

    Raises:
      ValueError: a value that is not allowed, quoted with what is.
      DataError: the data set cannot be had.
    """
    _require_values(config, base(""), "config")
    data = config.data.to_dict()
    source = sources.load(data.pop("dataset"))
    tasks = data.pop("tasks")
    stream = scenarios.make_stream(
        source, tuple(config.seeds), kind=data.pop("stream"), **data
    )
    if tasks is not None:
        stream = stream.between(*tasks)
    train = config.train.to_dict()
    settings = config.method.to_dict()

    def make_strategy(setup, **varied):
        return strategies.make(config.strategy, setup, settings | varied)

    return Problem(
        model=_model(config.model.to_dict(), stream),
        stream=stream,
        seeds=tuple(config.seeds),
        make_strategy=make_strategy,
        optimizer=_optimizer(config.optimizer),
        plan=Plan(lr=config.optimizer.lr, **train),
        joint=config.joint,
        measure=config.measure,
        seed_mode=config.seed_mode,
    )


def _model(fields: dict[str, Any], stream: scenarios.Stream) -> Any:
    name = fields.pop("name")
    if name in MODELS:
        build = MODELS[name]
    elif ":" in name:
        build = imported(name, "model")
    else:
        raise ValueError(
            f"unknown model {name!r}; known: {', '.join(MODELS)}, or an import path "
            "'package.module:Class'"
        )
    if dataclasses.is_dataclass(build):
        known = {f.name for f in dataclasses.fields(build)}
        unknown = set(fields) - known
        if unknown:
            raise ValueError(
                f"model {name!r} has no field {', '.join(sorted(unknown))}; it has "
                f"{', '.join(sorted(known - {'parent', 'name', 'num_outputs'}))}"
            )
        if "num_tasks" in known and fields.get("norm") == "batch_per_task":
            fields.setdefault("num_tasks", stream.num_tasks)
    return build(num_outputs=stream.num_outputs, **fields)


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
    if ":" in config.name:
        return imported(config.name, "optimizer")(config.lr)
    if config.name not in OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer {config.name!r}; known: {', '.join(OPTIMIZERS)}, or an "
            "import path 'package.module:factory' called with the learning rate"
        )
    if not config.lr > 0:
        raise ValueError(f"optimizer.lr must be greater than 0, got {config.lr}")
    if config.momentum and config.name != "sgd":
        raise ValueError(f"optimizer.momentum is for sgd, not {config.name}")
    if config.clip is not None and not config.clip > 0:
        raise ValueError(f"optimizer.clip must be greater than 0, got {config.clip}")
    clip = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    if config.name == "adamw":
        core = [optax.adamw(config.lr, weight_decay=config.weight_decay)]
    else:
        decay = config.weight_decay
        core = [optax.add_decayed_weights(decay)] if decay else []
        if config.name == "adam":
            core.append(optax.adam(config.lr))
        else:
            core.append(optax.sgd(config.lr, momentum=config.momentum or None))
    return optax.chain(*clip, *core)


def imported(path: str, what: str) -> Any:
    """The object at "package.module:name".

    Raises:
      ValueError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {path!r} cannot be imported: {error}") from error
