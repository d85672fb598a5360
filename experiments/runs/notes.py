"""What a run's user must be told of the space its method has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxcl.strategies.hat import AT_CLAMP, SHARED

from .results import OK

FREE_BELOW = 0.05
CLOSED_BELOW = 1e-3
CLAMPED_ABOVE = 0.5


def layers(report: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The entries of a strategy's report that are the share of a layer taken."""
    return {
        name: values
        for name, values in report.items()
        if name != AT_CLAMP and not name.endswith(SHARED)
    }


def of_task(
    report: Mapping[str, np.ndarray], task: int, status: Sequence[str]
) -> list[str]:
    """Notes that a task is the first to give rise to.

    Args:
      report: name -> share [S, T] after each task, NaN where not measured.
      task: from 0.
      status: of each seed; one that has failed has no say.

    Returns:
      A sentence for each layer whose free share, in the mean over seeds, has fallen
      under `FREE_BELOW`, one if over `CLAMPED_ABOVE` of HAT's embeddings ended at the
      clamp, where a gate hardly learns, and one for each layer that HAT has closed to
      the task, so that nothing passes.
    """
    healthy = [s == OK for s in status]
    so_far = {name: v[healthy, : task + 1] for name, v in report.items()}

    def first(values: np.ndarray, limit: float) -> bool:
        known = ~np.isnan(values).any(axis=1)
        mean = values[known].mean(axis=0) if known.any() else np.zeros(1)
        return bool(mean[-1] > limit and (mean[:-1] <= limit).all())

    found = [
        f"layer {name} is nearly full after task {task + 1}: less than "
        f"{FREE_BELOW:.0%} of it is free"
        for name, values in layers(so_far).items()
        if first(values, 1 - FREE_BELOW)
    ]
    if AT_CLAMP in so_far and first(so_far[AT_CLAMP], CLAMPED_ABOVE):
        found.append(
            f"over {CLAMPED_ABOVE:.0%} of the embeddings of task {task + 1} ended at "
            "the clamp, where gates hardly learn: a smaller learning rate may help"
        )
    for name, taken in layers(so_far).items():
        if name + SHARED not in so_far:
            continue
        before = taken[:, task - 1] if task else 0.0
        uses = taken[:, task] - before + so_far[name + SHARED][:, task]
        closed = int((uses < CLOSED_BELOW).sum())
        if closed:
            found.append(
                f"task {task + 1} uses nothing of layer {name} in {closed} of "
                f"{len(uses)} seeds: its gates closed before it was learned; a smaller "
                "strength or learning rate may help"
            )
    return found
