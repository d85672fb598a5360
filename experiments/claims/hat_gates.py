"""What of a network HAT opens for each task: claim 9's measurement and its table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..runs.opened import load_run
from ..runs.results import OK
from .claim import Array, Outcome


def gates(folder: Path) -> Mapping[str, Array]:
    """Which share of the network each task opens, and how far the tasks' masks overlap.

    Args:
      folder: of a run of HAT that has kept its last weights. A task's embeddings do not
        change after the task, so the last weights hold the gates of every task.

    Returns:
      For each seed and task t from 0, ``units_t`` and ``weights_t``: the share of
      hidden units, and of weights between hidden layers, that are open (gate above ½ on
      both sides); for t ≥ 1, ``jaccard_t``: the overlap of open units,
      |A ∩ B| / |A ∪ B|, as a mean over earlier tasks.
    """
    run = load_run(folder)
    found: dict[str, list[float]] = {}
    for seed, status in zip(run.seeds, run.result.status, strict=True):
        aux = run.weights(seed, run.num_tasks - 1).params.aux
        layers = [np.asarray(e) > 0 for e in aux.values()]  # σ(s e) > ½ ⇔ e > 0
        units = np.concatenate(layers, axis=1)
        pairs = list(zip(layers, layers[1:], strict=False))
        for t in range(run.num_tasks):
            weights = [np.outer(a[t], b[t]).mean() for a, b in pairs]
            # With a single hidden layer all inputs are open.
            open_weights = np.mean(weights) if weights else units[t].mean()
            values = {"units": units[t].mean(), "weights": open_weights}
            if t:
                both = (units[:t] & units[t]).sum(1)
                either = (units[:t] | units[t]).sum(1)
                values["jaccard"] = np.mean(both / np.maximum(either, 1))
            for name, value in values.items():
                value = float(value) if status == OK else float("nan")
                found.setdefault(f"{name}_{t}", []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def table(outcome: Outcome, measured: Mapping[str, Array]) -> list[str]:
    """Lines of Markdown: free units, and shares that are open, after some of the tasks.

    Args:
      outcome: of a run of HAT.
      measured: by `gates`; empty if that has not been run.
    """
    tasks = len(outcome.result.task_names)
    lines = [
        f"| {outcome.run.label}, after task | free units of each layer | units open "
        "| weights open | overlap with earlier tasks |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    taken = outcome.result.report["taken"]
    for t in sorted({0, tasks // 6, tasks // 3, 2 * tasks // 3, tasks - 1}):
        free = ", ".join(f"{100 * (1 - v[:, t].mean()):.0f} %" for v in taken.values())
        units = weights = jaccard = "–" if measured else "not yet run"
        if measured:
            units, weights = (
                f"{100 * np.nanmean(measured[f'{part}_{t}']):.0f} %"
                for part in ("units", "weights")
            )
        if measured and t:
            jaccard = f"{np.nanmean(measured[f'jaccard_{t}']):.2f}"
        lines.append(f"| {t + 1} | {free} | {units} | {weights} | {jaccard} |")
    return lines
