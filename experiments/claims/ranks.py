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
    """How training changes the effective rank of the classifier's input, per seed.

    Args:
      folder: of a run that has kept its last weights, or those of every task.

    Returns:
      ``final``: the rank after the last task, mean over the tasks' images, [S]. If the
      weights of every task were kept, also ``before_t`` and ``after_t`` for task t from
      0, on that task's images, and from these ``rise`` (the mean of after − before),
      ``first_rise``, ``later_rise`` and ``untrained``. NaN: failed seed.
    """
    run = load_run(folder)
    last = run.num_tasks - 1
    every = run.config.keep_weights == "tasks"
    found: dict[str, list[float]] = {}

    def put(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed, status in zip(run.seeds, run.result.status, strict=True):
        if status != OK:
            table = np.full((last + 2, last + 1), np.nan)
        else:
            table = _table(run, seed, every)
        put("final", table[-1].mean())
        if not every:
            continue
        at = np.arange(last + 1)
        before, after = table[at, at], table[at + 1, at]
        for t in at:
            put(f"before_{t}", before[t])
            put(f"after_{t}", after[t])
        rise = after - before
        put("rise", rise.mean())
        put("first_rise", rise[0])
        put("later_rise", rise[1:].mean())
        put("untrained", before[0])
    return {name: np.array(values) for name, values in found.items()}


def _table(run: Run, seed: int, every: bool) -> Array:
    """Effective rank [tasks trained, task's images]; NaN where it is not needed.

    Each file of weights is read only once, because it holds those of all seeds.
    """
    last = run.num_tasks - 1
    images = [run.data(seed, t)[0][:IMAGES] for t in range(last + 1)]
    table = np.full((last + 2, last + 1), np.nan)
    for trained in range(-1, last + 1) if every else (last,):
        weights = run.weights(seed, trained)
        # Before and after a task on that task's images; at the end on all tasks'.
        tasks = (trained, trained + 1) if trained < last else range(last + 1)
        for task in tasks:
            if 0 <= task <= last:
                out = run.apply(weights, images[task], task, current=max(trained, 0))
                rank = float(effective_rank(out.taps[READ_BY]))
                table[trained + 1, task] = rank
    return table
