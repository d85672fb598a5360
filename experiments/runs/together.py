"""Finds configs that can be trained together, as seeds of one problem."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxcl.training.optimizers import OPTIMIZERS
from jaxcl.training.problem import Problem

from .. import config as configs


def together(found: Sequence[ConfigDict], *, settings: bool = True) -> list[list[int]]:
    """Groups of positions of configs that differ only in fields that can be traced.

    These fields are the learning rate of a shipped optimizer, which scales its last
    step, and the strategy's settings that are floats.

    Args:
      found: the configs.
      settings: False traces only the learning rate: a strategy may need its settings
        as plain numbers.
    """
    groups: dict[str, list[int]] = {}
    for i, config in enumerate(found):
        rest = json.loads(config.to_json_best_effort())
        for name in _traced(config):
            node, _, leaf = name.partition(".")
            if node == "method" and not settings:
                continue
            rest[node].pop(leaf)
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(i)
    return list(groups.values())


def joined(found: Sequence[ConfigDict]) -> Problem:
    """The problem whose seeds are those of the first config, of the second, ….

    Args:
      found: configs that differ only in fields that can be traced; see `together`.
    """
    first, n = found[0], len(found[0].seeds)
    whole = first.copy_and_resolve_references()
    whole.seeds = tuple(first.seeds) * len(found)
    problem = configs.problem(whole)

    def per_seed(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(value for value in values for _ in range(n))

    settings: dict[str, tuple[float, ...]] = {}
    rates: tuple[float, ...] = ()
    for name in _traced(first):
        node, _, leaf = name.partition(".")
        values = [config.to_dict()[node][leaf] for config in found]
        if len(set(values)) == 1:
            continue
        if node == "optimizer":
            rates = per_seed([value / first.optimizer.lr for value in values])
        else:
            settings[leaf] = per_seed(values)
    return problem._replace(rates=rates, settings=settings)


def _traced(config: ConfigDict) -> list[str]:
    """The config's fields that can be traced, so that they may differ in a group."""
    own = [f"method.{k}" for k, v in config.method.items() if isinstance(v, float)]
    # A floor is a rate of its own: it would be scaled with the first config's.
    free = config.optimizer.name in OPTIMIZERS and not config.optimizer.lr_floor
    return own + (["optimizer.lr"] if free else [])
