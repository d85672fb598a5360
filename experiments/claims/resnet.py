"""Claim 7 (c): HAT on a reduced ResNet-18, its largest updates; described, not decided.

For each normalisation, HAT and BP train on two tasks of 2,000 CIFAR-100 images, five
epochs each.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.compose import chain
from jaxcl.contract import Strategy, strategy
from jaxcl.setup import Setup
from jaxcl.strategies import finetune, hat, label

from ..runs.results import OK
from .claim import Outcomes, Run
from .decide import backward
from .keys import path_of
from .streams import config_of, seeds, small

NORMS = ("none", "batch", "batch_per_task")
WATCHED = {"hat": "HAT", "bp": "BP"}
LARGEST = "largest_update"


class LargestState(NamedTuple):
    """float32[] each: the largest change in this task so far, and in the last task."""

    running: jax.Array
    task: jax.Array


def largest() -> Strategy:
    """Reports the largest change of one weight in one step of a task, max |Δw|."""

    def updates(updates, state, params, *, grads, ctx, out):
        size = optax.tree.max(jax.tree.map(lambda u: jnp.abs(u).max(), updates.net))
        running = jnp.maximum(state.running, size.astype(jnp.float32))
        return updates, state._replace(running=running)

    def after_task(params, state, *, data, model_state, task, key):
        return params, LargestState(jnp.zeros(()), state.running)

    return strategy(
        init=lambda params: LargestState(jnp.zeros(()), jnp.zeros(())),
        updates=updates,
        after_task=after_task,
        report=lambda state: {LARGEST: {"network": state.task}},
    )


@functools.wraps(hat)
def watched_hat(setup: Setup, **settings) -> Strategy:
    return chain(hat(setup, **settings), largest())


def watched_bp(setup: Setup) -> Strategy:
    return chain(finetune(setup), largest())


def runs(setting: str) -> tuple[Run, ...]:
    """HAT and BP with each norm; at ``quick`` on digits, with an MLP."""
    found = []
    for row in WATCHED:
        for norm in NORMS if setting != "quick" else NORMS[:1]:
            config = _config(setting, row)
            config.model.norm = norm
            # A separate row, with the settings of the row that it watches.
            config.row = config.strategy = path_of(__name__, f"watched_{row}")
            if row == "hat":
                config.method.refuse_shared_norm = False
            title = f"{label(row)}, ResNet-18, norm {norm}"
            found.append(Run(name_of(row, norm), title, config))
    return tuple(found)


def name_of(row: str, norm: str) -> str:
    """The name of a run."""
    return f"resnet_{row}_{norm}"


def _config(setting: str, row: str):
    if setting == "quick":
        return small(row)
    config = config_of("split_cifar100", row, "chart", seeds=seeds(setting))
    config.name = "split_cifar100_resnet"
    config.data.update(num_tasks=2, train_per_task=2000, classes_per_task=10)
    model = {"name": "resnet18", "channels": 20, "norm": "none"}
    config.model = model | {"head": config.model.head, "dtype": config.model.dtype}
    config.train.epochs = 5
    return config


def shown(outcomes: Outcomes) -> list[str]:
    """Accuracy, failed seeds and largest update of every finished run."""
    lines = []
    for row in WATCHED:
        for norm in NORMS:
            outcome = outcomes.get(name_of(row, norm))
            if outcome is None:
                continue
            result = outcome.result
            well = np.array([status == OK for status in result.status])
            own = 100 * np.diagonal(result.matrix, axis1=1, axis2=2)[well, :2]
            values = [*own.T, backward(result)[well]]
            (steps,) = result.report[LARGEST].values()
            cells = [f"{v.mean():.1f}" if well.any() else "–" for v in values]
            cells += [f"{np.max(steps):.2g}", f"{(~well).sum()}/{len(well)}"]
            lines.append(f"| {outcome.run.label} | " + " | ".join(cells) + " |")
    if not lines:
        return []
    return [
        "",
        "(c) Reduced ResNet-18, two tasks of 2,000 CIFAR-100 images, five epochs "
        "each; described, not decided:",
        "",
        "| Run | Task 1, % | Task 2, % | BWT | Largest update of a weight | Failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ]
