"""Claim 9: HAT runs out of room: a prediction opens a portion of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcl.strategies import METHODS, label

from ..runs.opened import load_run
from ..runs.results import OK, Result
from .claim import Array, Claim, Effect, Estimate, Outcomes, Question, Run, below
from .decide import accuracy, mean_of
from .streams import permuted_run, tiny_run

OTHERS = ("ewc", "gpm", "bp")
TINY_OTHERS = ("bp_star_star", "ewc", "gpm")
TASKS, SPAN = 30, 5
LESS = -2.0
TINY_LESS = -5.0
GATES = "permuted_30_hat_gates"
CHANCE = 5.0  # per cent: twenty classes per task of Tiny-ImageNet
LEARNS = 0.5


def runs(setting: str) -> tuple[Run, ...]:
    """Thirty permuted tasks, and ten tasks of Tiny-ImageNet."""
    found = []
    others = OTHERS if setting != "quick" else OTHERS[-1:]
    for row in ("hat", *others):
        run = permuted_run(setting, row, tasks=TASKS, number=5)
        name, title = f"permuted_30_{row}", f"{label(row)}, 30 tasks"
        found.append(run._replace(name=name, label=title))
        if row == "hat":  # the same run: a recorded one may lack the weights for this
            title += ", its gates"
            found.append(run._replace(name=GATES, label=title, measure=gates))
    for row in ("hat", "bp", *TINY_OTHERS):
        run = tiny_run(setting, row)
        measured = row in ("hat", "bp")
        found.append(run._replace(measure=first_task) if measured else run)
    return tuple(found)


def first_task(folder: Path) -> Mapping[str, Array]:
    """Accuracy in per cent on task 1's validation data, just after task 1 [S]."""
    run = load_run(folder)
    found = [run.accuracy(run.weights(s, 0), s, 0, part="valid") for s in run.seeds]
    healthy = [status == OK for status in run.result.status]
    return {"first_task": np.where(healthy, 100 * np.array(found), np.nan)}


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


def learned(result: Result) -> Array:
    """A[j, j] in per cent [S, T]; NaN: failed seed."""
    own = 100 * np.diagonal(result.matrix, axis1=1, axis2=2)
    healthy = np.array([status == OK for status in result.status])
    return np.where(healthy[:, None], own, np.nan)


def change(result: Result) -> Array:
    """Mean A[j, j] of the last five tasks minus that of the first five [S]."""
    own = learned(result)
    return own[:, -SPAN:].mean(1) - own[:, :SPAN].mean(1)


def runs_out(other: str) -> Effect:
    """HAT's `change` minus that of another row."""
    names = ("permuted_30_hat", f"permuted_30_{other}")

    def estimate(outcomes: Outcomes) -> Estimate:
        hat, theirs = (change(outcomes[name].result) for name in names)
        return mean_of(hat - theirs)

    return Effect(f"HAT's change − {label(other)}'s", names, estimate, below(LESS))


def falls_behind() -> Effect:
    """HAT minus the worst of the other rows on Tiny-ImageNet, if HAT learns task 1."""
    names = tuple(f"tiny_{row}" for row in ("hat", "bp", *TINY_OTHERS))

    def estimate(outcomes: Outcomes) -> Estimate:
        ours, theirs = (
            np.mean(outcomes[f"tiny_{row}"].measured["first_task"]) - CHANCE
            for row in ("hat", "bp")
        )
        if not ours >= LEARNS * theirs:
            return Estimate(math.nan, math.nan, math.nan)
        hat = outcomes["tiny_hat"].result
        others = [accuracy(outcomes[f"tiny_{row}"].result) for row in TINY_OTHERS]
        return mean_of(accuracy(hat) - np.min(others, axis=0))

    return Effect(
        "HAT − the worst of BP**, EWC and GPM", names, estimate, below(TINY_LESS)
    )


def shown(outcomes: Outcomes) -> list[str]:
    """A[j, j] of the first and last tasks; HAT's free units and open shares."""
    lines = []
    for row in ("hat", *OTHERS):
        outcome = outcomes.get(f"permuted_30_{row}")
        if outcome is None:
            continue
        own = np.nanmean(learned(outcome.result), 0)
        lines.append(
            f"| {label(row)} | {own[:SPAN].mean():.2f} | {own[-SPAN:].mean():.2f} |"
        )
    if lines:
        lines = [
            "| 30 permuted tasks | A[j, j] of the first five | of the last five |",
            "| --- | ---: | ---: |",
            *lines,
            "",
        ]
    outcome, m = outcomes.get("permuted_30_hat"), _gates(outcomes)
    if outcome is None:
        return lines
    tasks = len(outcome.result.task_names)
    lines += [
        "| HAT, task | free units of each layer | units open | weights open | overlap "
        "with earlier tasks |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    taken = outcome.result.report["taken"]
    for t in sorted({0, tasks // 6, tasks // 3, 2 * tasks // 3, tasks - 1}):
        free = ", ".join(f"{100 * (1 - v[:, t].mean()):.0f} %" for v in taken.values())
        units = weights = jaccard = "not yet run" if not m else "–"
        if m:
            units, weights = (
                f"{100 * np.nanmean(m[f'{part}_{t}']):.0f} %"
                for part in ("units", "weights")
            )
        if m and t:
            jaccard = f"{np.nanmean(m[f'jaccard_{t}']):.2f}"
        lines.append(f"| {t + 1} | {free} | {units} | {weights} | {jaccard} |")
    return lines


def _gates(outcomes: Outcomes) -> Mapping[str, Array]:
    """What `gates` measured; nothing if that has not been run."""
    return outcomes[GATES].measured if GATES in outcomes else {}


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """A[j, j] over tasks; HAT's free, open and shared units."""
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in ("hat", *OTHERS):
        outcome = outcomes.get(f"permuted_30_{row}")
        if outcome is None:
            continue
        own = learned(outcome.result)
        at = np.arange(1, own.shape[1] + 1)
        colour = METHODS[row].colour
        left.plot(at, np.nanmean(own, 0), color=colour, label=label(row))
        ends = np.nanmin(own, 0), np.nanmax(own, 0)
        left.fill_between(at, *ends, color=colour, alpha=0.2, lw=0)
    left.set_ylabel("A[j, j], the task just learned, %")
    outcome, m = outcomes.get("permuted_30_hat"), _gates(outcomes)
    if outcome is not None:
        tasks = len(outcome.result.task_names)
        at = np.arange(1, tasks + 1)
        for name, taken in outcome.result.report["taken"].items():
            right.plot(at, 100 * (1 - taken.mean(0)), label=f"free units, {name}")
        if m:
            for part, text in (("units", "units open"), ("weights", "weights open")):
                values = [100 * np.nanmean(m[f"{part}_{t}"]) for t in range(tasks)]
                right.plot(at, values, "--", label=text)
            overlap = [100 * np.nanmean(m[f"jaccard_{t}"]) for t in range(1, tasks)]
            right.plot(
                at[1:], overlap, ":", color="k", label="overlap with earlier tasks"
            )
    right.set_ylabel("HAT, %")
    for ax in (left, right):
        ax.set_xlabel("task")
        if ax.has_data():
            ax.legend(fontsize=6)
    return figure


CLAIM = Claim(
    name="hat_room",
    number=9,
    statement="HAT runs out of room: a prediction activates only a portion of the "
    "network, and later tasks find less of it.",
    source="The author's note.",
    rule="(a) What is learned (A[j, j]) of tasks 26–30 minus what was learned of tasks "
    "1–5, HAT's minus that of EWC, GPM and BP on the same network: the upper end of "
    "the 95 % paired t interval is below −2 points for each. (b) Split Tiny-ImageNet: "
    "HAT minus the worst of BP**, EWC and GPM has its upper end below −5; undecided "
    "unless HAT learns of task 1 at least half of what BP learns, above chance on "
    "validation data.",
    runs=runs,
    questions=(
        Question("30 permuted tasks", tuple(map(runs_out, OTHERS))),
        Question("split Tiny-ImageNet", (falls_behind(),)),
    ),
    figure=figure,
    shown=shown,
    notes=(
        "Permuted MNIST: 784-400-400 with a head per task, two epochs per task.",
        "Whether (a) is the cause of (b) is for the free units and A[j, j] to say.",
    ),
)
