"""Notes for a run's user on the space that the method has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .results import OK

FREE_BELOW = 0.05
CLOSED_BELOW = 1e-3
CLAMPED_ABOVE = 0.5

Report = Mapping[str, Mapping[str, np.ndarray]]
"""quantity -> layer -> [S, T], NaN where not measured."""


def of_task(report: Report, task: int, status: Sequence[str]) -> list[str]:
    """Notes that become true with a task.

    Args:
      report: of the strategy after each task. Three quantities are read: "taken" and
        "shared", which are shares of a layer, and "at_clamp", the share of its
        embeddings that ended at their bound.
      task: from 0.
      status: of each seed; a failed seed is left out.

    Returns:
      A sentence for each layer whose free share, averaged over seeds, has fallen below
      `FREE_BELOW`; one for each layer in which more than `CLAMPED_ABOVE` of the
      embeddings ended at the clamp, where a gate hardly learns; and one for each layer
      that is closed to the task, so that nothing passes.
    """
    healthy = [s == OK for s in status]

    def so_far(quantity: str) -> dict[str, np.ndarray]:
        layers = report.get(quantity, {})
        return {name: values[healthy, : task + 1] for name, values in layers.items()}

    taken, shared = so_far("taken"), so_far("shared")
    found = [
        f"layer {name} is nearly full after task {task + 1}: less than "
        f"{FREE_BELOW:.0%} of it is free"
        for name, values in taken.items()
        if _first(values, 1 - FREE_BELOW)
    ]
    found += [
        f"over {CLAMPED_ABOVE:.0%} of the embeddings of layer {name} ended task "
        f"{task + 1} at the clamp, where gates hardly learn: a smaller learning rate "
        "may help"
        for name, values in so_far("at_clamp").items()
        if _first(values, CLAMPED_ABOVE)
    ]
    for name in (name for name in shared if name in taken):
        before = taken[name][:, task - 1] if task else 0.0
        uses = taken[name][:, task] - before + shared[name][:, task]
        closed = int((uses < CLOSED_BELOW).sum())
        if closed:
            found.append(
                f"task {task + 1} uses nothing of layer {name} in {closed} of "
                f"{len(uses)} seeds: its gates closed before it was learned; a smaller "
                "strength or learning rate may help"
            )
    return found


def _first(values: np.ndarray, limit: float) -> bool:
    """Whether the mean over seeds first exceeds a limit at the last task."""
    known = ~np.isnan(values).any(axis=1)
    mean = values[known].mean(axis=0) if known.any() else np.zeros(1)
    return bool(mean[-1] > limit and (mean[:-1] <= limit).all())
