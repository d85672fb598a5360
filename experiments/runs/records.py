"""All numbers of a run as one long table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import measured
from .results import Result


def long_table(result: Result, found: measured.Measured) -> list[dict[str, Any]]:
    """Accuracies, the strategy's reports and measured features.

    Args:
      result: of a run.
      found: its features, by "quantity/layer"; see `experiments.runs.measured.AXES`.

    Returns:
      A row per number: ``quantity``, ``layer`` ("" if there is none), ``seed``, the
      axes of the quantity (``tasks_trained``, where 0 is the untrained network,
      ``task`` from 0, ``epoch``, ``compared_with``, ``old_task``) and ``value``. What
      was not measured has no row.
    """

    def rows(
        quantity: str, layer: str, values: NDArray, axes: tuple[str, ...]
    ) -> Iterator[dict[str, Any]]:
        for seed, *at in np.argwhere(np.isfinite(values)):
            yield {
                "quantity": quantity,
                "layer": layer,
                "seed": result.seeds[seed],
                **{axis: int(i) for axis, i in zip(axes, at, strict=True)},
                "value": float(values[seed, *at]),
            }

    accuracy = np.concatenate([result.baseline[:, None], result.matrix], axis=1)
    table = [*rows("accuracy", "", accuracy, ("tasks_trained", "task"))]
    for quantity, layers in result.report.items():
        for layer, values in layers.items():
            later = np.pad(values, ((0, 0), (1, 0)), constant_values=np.nan)
            table += rows(quantity, layer, later, ("tasks_trained",))
    for name, values in found.items():
        quantity, of_layer, layer = name.partition("/")
        if of_layer:
            axes = measured.AXES.get(quantity, measured.OWN)
            table += rows(quantity, layer, values, axes)
    return table
