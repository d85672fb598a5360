"""`features.npz`: the measurements of a run's features.

It has one array per quantity and layer, named "quantity/layer". The first axis is the
seeds; the others depend on the quantity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import arrays

FILE_NAME = "features.npz"
Measured = dict[str, NDArray]

# The axes after the seeds'. "tasks_trained" is 0 … T; "epoch" is as long as the longest
# task. What was not measured is NaN.
AXES = {
    "effective_rank": ("tasks_trained", "task"),
    "stable_rank": ("tasks_trained", "task"),
    "energy_rank": ("tasks_trained", "task"),
    "dormant_share": ("tasks_trained", "task"),
    "probe_ridge": ("tasks_trained", "task"),
    "probe_ncm": ("tasks_trained", "task"),
    "probe_multinomial": ("tasks_trained", "task"),
    # Class-incremental, of all examples that the accuracy matrix is of, among the
    # outputs of their task.
    "accuracy_told": ("tasks_trained", "task"),
    # Share of an output's examples, of the tasks so far, that are answered so.
    "confusion": ("tasks_trained", "output", "answer"),
    # Features of the first task's examples, each pair of times in the training.
    "cka": ("tasks_trained", "compared_with"),
    # Compared with the features and weights after the first task.
    "feature_drift": ("tasks_trained",),
    "weight_drift": ("tasks_trained",),
    # On the examples of the task in training.
    "effective_rank_by_epoch": ("task", "epoch"),
    # Between the task in training and an old one; the "layer" is the time of
    # measuring: the task's start, or after its first epoch.
    "conflict_gradient": ("task", "old_task"),
    "conflict_step": ("task", "old_task"),
}
OWN = ("tasks_trained", "task")  # of a function of one's own, named as the function
SECONDS = "seconds"  # float64[T + 1] spent on measuring, compilation included


def load(workdir: Path) -> Measured:
    """The measurements of a run so far; empty if the config asks for none."""
    file = workdir / FILE_NAME
    return arrays.load(file) if file.is_file() else {}


def layers_of(measured: Measured, quantity: str) -> dict[str, NDArray]:
    """Layer -> values of a quantity; empty if it was not measured."""
    parts = {name: name.partition("/") for name in measured}
    return {
        layer: measured[name]
        for name, (found, _, layer) in parts.items()
        if found == quantity
    }


def own_quantities(measured: Measured) -> list[str]:
    """What functions of one's own have measured, in the order of the file."""
    names = (name.partition("/") for name in measured)
    return list(dict.fromkeys(q for q, slash, _ in names if slash and q not in AXES))


def put(measured: Measured, name: str, at: tuple[int, ...], value: NDArray) -> None:
    """Sets values [S, ...] at an index after the seeds' axis; enlarges the array."""
    value = np.asarray(value, np.float32)
    old = measured.get(name)
    rest = value.shape[1:]
    shape = tuple(i + 1 for i in at)
    if old is not None:
        shape = tuple(
            max(a, b) for a, b in zip(shape, old.shape[1 : 1 + len(at)], strict=True)
        )
    new = np.full((len(value), *shape, *rest), np.nan, np.float32)
    if old is not None:
        new[tuple(slice(n) for n in old.shape)] = old
    new[(slice(None), *at)] = value
    measured[name] = new
