"""What a run's user must be told of the space its method has left."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxcl.strategies.hat import AT_CLAMP, SHARED

FREE_BELOW = 0.05
CLAMPED_ABOVE = 0.5


def layers(report: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The entries of a strategy's report that are the share of a layer taken."""
    return {
        name: values
        for name, values in report.items()
        if name != AT_CLAMP and not name.endswith(SHARED)
    }


def of_task(report: Mapping[str, np.ndarray], task: int) -> list[str]:
    """Notes that a task is the first to give rise to.

    Args:
      report: name -> share [S, T] after each task, NaN where not measured.
      task: from 0.

    Returns:
      A sentence for each layer whose free share, in the mean over seeds, has fallen
      under `FREE_BELOW`, and one if over `CLAMPED_ABOVE` of HAT's embeddings ended at
      the clamp, where a gate hardly learns.
    """

    def first(values: np.ndarray, limit: float) -> bool:
        known = ~np.isnan(values[:, : task + 1]).any(axis=1)
        mean = values[known, : task + 1].mean(axis=0) if known.any() else np.zeros(1)
        return bool(mean[-1] > limit and (mean[:-1] <= limit).all())

    found = [
        f"layer {name} is nearly full after task {task + 1}: less than "
        f"{FREE_BELOW:.0%} of it is free"
        for name, values in layers(report).items()
        if first(values, 1 - FREE_BELOW)
    ]
    if AT_CLAMP in report and first(report[AT_CLAMP], CLAMPED_ABOVE):
        found.append(
            f"over {CLAMPED_ABOVE:.0%} of the embeddings of task {task + 1} ended at "
            "the clamp, where gates hardly learn: a smaller learning rate may help"
        )
    return found
