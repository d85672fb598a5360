"""Turns a config (ml_collections) into a `Problem`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from ml_collections import ConfigDict

from jaxcl import strategies
from jaxcl.benchmark import base, defaults, required, settable
from jaxcl.data import Reading, scenarios, sources
from jaxcl.fields import flat, literal, require_fields
from jaxcl.nn.building import REQUIRED, build_model, settings_of
from jaxcl.training.optimizers import make_optimizer
from jaxcl.training.plan import Plan, validate_plan
from jaxcl.training.problem import Problem


def folder(row: str) -> str:
    """The name of a row's folder: an import path's colon may not stand in one."""
    return row.replace(":", ".")


def method_of(config: ConfigDict) -> strategies.Method:
    """The method of a config's run, as its row names it.

    Raises:
      ValueError: the row is of another strategy; results would carry the wrong name.
    """
    found = strategies.method(config.row or strategies.row_of(config.strategy))
    if found.factory is not strategies.factory(config.strategy):
        raise ValueError(
            f"row {config.row!r} is not strategy {config.strategy!r}: name the row, "
            "--config=FILE:ROW, or give --config.strategy on the command line"
        )
    return found


def set_field(config: ConfigDict, field: str, value: Any) -> None:
    """Sets an existing field of a config.

    Raises:
      ValueError: the config has no such field, or its type differs from the value's.
    """
    node: Any = config
    for i, part in enumerate(parts := field.split(".")):
        if not isinstance(node, ConfigDict) or part not in node:
            known = sorted(node) if isinstance(node, ConfigDict) else ()
            own = f"method.{field}"
            near = (
                f" (did you mean {own}?)" if field in config.get("method", ()) else ""
            )
            raise ValueError(
                f"{config.row or config.name}: no field {field}{near}; "
                f"{'.'.join(parts[:i]) or 'the config'} has "
                f"{', '.join(known) or 'none'}"
            )
        node = node[part]
    try:
        config.update_from_flattened_dict({field: value})
    except TypeError as error:
        raise ValueError(
            f"{field} must be {type(node).__name__}, got {value!r}"
        ) from error


def in_effect(config: ConfigDict) -> str:
    """Every field of a config, one per line, as ``--config.FIELD`` names it."""
    lines = [f"# {config.name}, {config.row or config.strategy}"]
    lines += [f"{field} = {value!r}" for field, value in flat(config.to_dict())]
    return "\n".join(lines)


def spelled_out(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Field -> value, as JSON has it; a field that the config lacks is at its default.

    So a config from before a field existed equals a newer one with its default.

    Args:
      config: a `ConfigDict`, or what was read from a run's `config.json`.
    """
    fields = dict(flat(_as_json(config)))
    try:
        default = neutral(str(fields.get("strategy", "finetune")))
    except ValueError:  # a method whose file is gone: its run is still told from others
        default = neutral("finetune")
    return {**default, **fields}


@functools.cache
def neutral(strategy: str) -> Mapping[str, Any]:
    """Field -> default, as JSON has it: the fields of `base` and of a strategy."""
    found = base("")
    found.method = ConfigDict(defaults(strategies.factory(strategy)))
    return dict(flat(_as_json(found)))


def _as_json(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    whole = config if isinstance(config, ConfigDict) else ConfigDict(dict(config))
    return json.loads(whole.to_json_best_effort())


def from_json(fields: dict[str, Any]) -> ConfigDict:
    """The config in a `config.json`; a field that it lacks is at its neutral value.

    Some runs are older than some fields. JSON has no tuples: lists become tuples.
    """
    neutral = json.loads(base("").to_json_best_effort())
    return ConfigDict(_tuples(_laid_over(neutral, fields)))


def _laid_over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {k: _laid_over(below.get(k), v) for k, v in above.items()}


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def problem(config: ConfigDict) -> Problem:
    """Builds what a config describes.

    Raises:
      ValueError: a value that is not allowed; the message names the allowed ones.
      DataError: the data set cannot be obtained.
    """
    require_fields(config)
    data = config.data.to_dict()
    reading = Reading(**{name: data.pop(name) for name in Reading._fields})
    source = sources.load(data.pop("dataset"), reading=reading)
    tasks = data.pop("tasks")
    stream = scenarios.make_stream(
        source, tuple(config.seeds), kind=data.pop("stream"), **data
    )
    if tasks is not None:
        stream = stream.between(*tasks)
    settings = _method_settings(config)

    def make_strategy(setup, **varied):
        return strategies.make(config.strategy, setup, settings | varied)

    fields = config.model.to_dict()
    head, dtype = fields.pop("head"), fields.pop("dtype")
    return Problem(
        model=build_model(
            fields.pop("name"),
            fields,
            num_outputs=stream.num_outputs,
            input_shape=stream.input_shape,
            num_tasks=stream.num_tasks,
        ),
        heads=(tuple(head.split("/")),),
        dtype=dtype,
        stream=stream,
        seeds=tuple(config.seeds),
        make_strategy=make_strategy,
        optimizer=_optimizer(config),
        plan=_plan(config),
        joint=config.joint,
        joint_once=config.joint_once,
        measure=config.measure,
        measure_tasks=config.measure_tasks,
        seed_mode=config.seed_mode,
    )


def require_plan(config: ConfigDict) -> None:
    """Refuses fields out of range, and a plan that contradicts itself.

    Raises:
      ValueError: as `problem`, without reading any data.
    """
    require_fields(config)
    validate_plan(_plan(config), has_validation=config.data.valid_fraction > 0)


def replace_model(config: ConfigDict, given: Sequence[str]) -> None:
    """Gives a config the model that a command line names; changes the config.

    If the model is another one, its fields replace those of the config's model.

    Args:
      config: of a benchmark.
      given: "field=value", which may include ``name``; empty: no change.

    Raises:
      ValueError: an unknown model, or a field that the model does not have.
    """
    fields = dict(pair.partition("=")[::2] for pair in given)
    if not fields:
        return
    model: Any = config.model
    if fields.setdefault("name", model.name) != model.name:
        common = {field: model[field] for field in base("").to_dict()["model"]}
        model = {
            k: None if v is REQUIRED else v
            for k, v in settings_of(fields["name"]).items()
        }
        config.model = ConfigDict(common | {k: settable(v) for k, v in model.items()})
        model = config.model
    for field, text in fields.items():
        if field not in model:
            raise ValueError(
                f"--config.model.{field}: model {fields['name']!r} has no such field; "
                f"it has {', '.join(sorted(model))}"
            )
        try:
            model[field] = text if isinstance(model[field], str) else literal(text)
        except TypeError as error:
            raise ValueError(f"--config.model.{field}={text}: {error}") from error


def _plan(config: ConfigDict) -> Plan:
    of_optimizer = ("lr", "schedule", "warmup", "decay_per_task", "lr_floor")
    optimizer: Any = config.optimizer
    rate = {name: optimizer[name] for name in of_optimizer}
    return Plan(**rate, **config.train.to_dict())


def _method_settings(config: ConfigDict) -> dict[str, Any]:
    factory = method_of(config).factory
    settings = config.method.to_dict()
    for name in required(factory):
        if settings.get(name) is None:
            raise ValueError(
                f"strategy {config.strategy!r} needs a value for {name}: "
                f"--config.method.{name}=VALUE"
            )
    return settings


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
    names = ("name", "lr", "momentum", "nesterov", "weight_decay", "clip")
    fields: Any = config.optimizer
    return make_optimizer(**{name: fields[name] for name in names})
