"""Which probes a run fits to its features, and how many examples they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxcl import features
from jaxcl.checks import require
from jaxcl.ops.sampling import shuffled
from jaxcl.training.problem import Problem
from jaxcl.types import Batch, TaskData

HELD_OUT = 0.2  # share of a probe's training examples, to choose its strength


def enough(problem: Problem, names: Sequence[str]) -> dict[str, int]:
    """The size of the smallest task of any seed, in each part that is measured on.

    Raises:
      ValueError: it is too small for a measurement.
    """
    parts = ("train", problem.measure)
    found = {part: fewest(problem, part) for part in parts}
    held_out = ("train", 3)  # two to fit, one to choose the strength
    needs = {"probes": held_out, "multinomial": held_out, "cka": (problem.measure, 4)}
    for name, (part, number) in needs.items():
        require(
            name not in names or found[part] >= number,
            f"{name} needs at least {number} {part} examples of every task, the "
            f"smallest has {found[part]}",
        )
    return found


def probes(
    names: Sequence[str], x: jax.Array, y: jax.Array, num_classes: int
) -> dict[str, Any]:
    """Probes fitted to features [N, ...] and their classes [N], by quantity."""
    fit, found = round((1 - HELD_OUT) * len(x)), {}
    parts = (x[:fit], y[:fit], x[fit:], y[fit:])
    if "probes" in names:
        found["probe_ridge"] = features.ridge_probe(*parts, num_classes=num_classes)
        found["probe_ncm"] = features.ncm(x, y, num_classes=num_classes)
    if "multinomial" in names:
        found["probe_multinomial"] = features.multinomial_probe(
            *parts, num_classes=num_classes
        )
    return found


def sample(data: TaskData, number: int) -> Batch:
    """The examples of a task that are measured, the same at all times."""
    return data.take(shuffled(jax.random.key(0), data.size, data.capacity, number))


def fewest(problem: Problem, part: str) -> int:
    """The size of the smallest task of any seed in a part."""
    return int(np.diff(np.asarray(getattr(problem.stream.per_seed, part).offset)).min())
