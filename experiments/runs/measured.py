"""What a run has measured of its network's features: `features.npz`.

An array per quantity and layer, named "quantity/layer". Its first axis is the seeds;
the others follow from the quantity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import arrays

FILE_NAME = "features.npz"
Measured = dict[str, NDArray]

# Axes after that of the seeds. Of tasks trained there are 0 … T, of epochs as many as
# the longest task had; where nothing was measured there is NaN.
AXES = {
    "effective_rank": ("tasks_trained", "task"),
    "stable_rank": ("tasks_trained", "task"),
    "energy_rank": ("tasks_trained", "task"),
    "dormant_share": ("tasks_trained", "task"),
    "probe_ridge": ("tasks_trained", "task"),
    "probe_ncm": ("tasks_trained", "task"),
    "probe_multinomial": ("tasks_trained", "task"),
    # Of the first task's examples: with themselves, other tasks being trained.
    "cka": ("tasks_trained", "compared_with"),
    # Against the features and weights after the first task.
    "feature_drift": ("tasks_trained",),
    "weight_drift": ("tasks_trained",),
    # Of the task in training, on its own examples.
    "effective_rank_by_epoch": ("task", "epoch"),
    # Of the task in training and an old one: at its start, after its first epoch.
    "conflict_gradient": ("task", "old_task"),
    "conflict_step": ("task", "old_task"),
}
SECONDS = "seconds"  # float64[T + 1] spent on measuring, compilation included


def load(workdir: Path) -> Measured:
    """What a run has measured so far; nothing where it was not asked to."""
    file = workdir / FILE_NAME
    return arrays.load(file) if file.is_file() else {}


def layers_of(measured: Measured, quantity: str) -> dict[str, NDArray]:
    """Layer -> values of a quantity; empty where it was not measured."""
    parts = {name: name.partition("/") for name in measured}
    return {
        layer: measured[name]
        for name, (found, _, layer) in parts.items()
        if found == quantity
    }


def put(measured: Measured, name: str, at: tuple[int, ...], value: NDArray) -> None:
    """Sets values [S, ...] at a place of the axes after the seeds', making room."""
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
