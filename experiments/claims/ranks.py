"""Effective rank of a run's last hidden layer, from its kept weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcl.features import effective_rank

from ..runs.opened import Run, load_run
from ..runs.results import OK
from .claim import Array

IMAGES = 1000  # test images of each task
READ_BY = "head"  # the layer that reads the last hidden one


def ranks(folder: Path) -> Mapping[str, Array]:
    """What training does to the rank of what the classifier reads, per seed.

    Args:
      folder: of a run that has kept its last weights, or those of every task.

    Returns:
      ``final``: after the last task, mean over the tasks' images, [S]. Where weights of
      every task were kept also ``before_t`` and ``after_t`` for task t from 0, on that
      task's images, and of these ``rise`` (the mean of after − before), ``first_rise``,
      ``later_rise`` and ``untrained``. NaN: the seed failed.
    """
    run = load_run(folder)
    last = run.num_tasks - 1
    every = run.config.keep_weights == "tasks"
    found: dict[str, list[float]] = {}

    def put(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed, status in zip(run.seeds, run.result.status, strict=True):
        well = status == OK
        final = [rank(run, seed, last, t) if well else np.nan for t in range(last + 1)]
        put("final", float(np.mean(final)))
        if not every:
            continue
        before, after = (
            np.array(
                [
                    rank(run, seed, t + step, t) if well else np.nan
                    for t in range(last + 1)
                ]
            )
            for step in (-1, 0)
        )
        for t in range(last + 1):
            put(f"before_{t}", before[t])
            put(f"after_{t}", after[t])
        rise = after - before
        put("rise", rise.mean())
        put("first_rise", rise[0])
        put("later_rise", rise[1:].mean())
        put("untrained", before[0])
    return {name: np.array(values) for name, values in found.items()}


def rank(run: Run, seed: int, trained: int, task: int) -> float:
    """Effective rank on a task's images, of the weights after task `trained`."""
    x, _ = run.data(seed, task)
    weights = run.weights(seed, trained)
    out = run.apply(weights, x[:IMAGES], task, current=max(trained, 0))
    return float(effective_rank(out.taps[READ_BY]))
