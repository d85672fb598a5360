"""Claim 10: short-term continual learning is easy; BP already does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcl.strategies import METHODS, label

from ..runs.results import OK, Result
from .claim import Array, Claim, Effect, Estimate, Outcomes, Question, Run, above
from .decide import mean_of
from .figures import not_yet_run
from .streams import MNIST_ROWS, chart_run, cifar_run, permuted_run

MARGIN = -2.0
DECIDES = (5, 10)
LENGTHS = (5, 10, 20, 30, 50)  # all from one run of fifty tasks
CIFAR_LENGTHS = (5, 10, 20)
CIFAR_ROWS = ("bp", "bp_star_star", "ewc", "gpm", "hat")
STREAMS = ("permuted MNIST", "split CIFAR-100")
PLAIN = ("bp", "bp_star_star")


def runs(setting: str) -> tuple[Run, ...]:
    """Split CIFAR-100 in 5, 10 (the chart's) and 20 tasks; fifty permuted tasks."""
    found = [chart_run(setting, row) for row in CIFAR_ROWS]
    for tasks in (5, 20):
        found += [cifar_run(setting, row, tasks) for row in CIFAR_ROWS]
    for row in MNIST_ROWS:
        # Of fifty tasks, those to come would take as long to measure as to learn.
        fields = {"measure_tasks": "seen"} if setting != "quick" else {}
        run = permuted_run(setting, row, tasks=max(LENGTHS), number=5, **fields)
        found.append(run._replace(name=f"permuted_50_{row}"))
    return tuple(found)


def cifar_name(row: str, tasks: int) -> str:
    """The name of a row's run on split CIFAR-100."""
    return row if tasks == 10 else f"cifar_{tasks}_{row}"


def after(result: Result, tasks: int) -> Array:
    """ACC in per cent over the first T tasks, after the last of them [S]."""
    t = min(tasks, len(result.task_names))
    healthy = np.array([status == OK for status in result.status])
    return np.where(healthy, 100 * result.matrix[:, t - 1, :t].mean(1), np.nan)


def minus(x: str, y: str, tasks: int, name: str) -> Effect:
    """ACC of one run after T tasks minus that of another."""

    def estimate(outcomes: Outcomes) -> Estimate:
        a, b = (outcomes[run].result for run in (x, y))
        return mean_of(after(a, tasks) - after(b, tasks))

    return Effect(name, (x, y), estimate, above(MARGIN))


def permuted_effects(row: str) -> tuple[Effect, ...]:
    """A row minus each dedicated row on permuted MNIST, at the deciding lengths."""
    return tuple(
        minus(
            f"permuted_50_{row}",
            f"permuted_50_{other}",
            tasks,
            f"{label(row)} − {label(other)}, T = {tasks}",
        )
        for tasks in DECIDES
        for other in MNIST_ROWS
        if other not in PLAIN
    )


def cifar_effects(row: str) -> tuple[Effect, ...]:
    """A row minus each dedicated row on split CIFAR-100, at the deciding lengths."""
    return tuple(
        minus(
            cifar_name(row, tasks),
            cifar_name(other, tasks),
            tasks,
            f"{label(row)} − {label(other)}, T = {tasks}",
        )
        for tasks in DECIDES
        for other in CIFAR_ROWS
        if other not in PLAIN
    )


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """BP and BP** minus every dedicated row, against the number of tasks."""
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    panels = figure.subplots(2, 2)
    for i, row in enumerate(PLAIN):
        _curves(panels[i, 0], outcomes, row, MNIST_ROWS, LENGTHS, "permuted_50_{0}")
        _cifar_curves(panels[i, 1], outcomes, row)
        for ax, stream, lengths in zip(
            panels[i], STREAMS, (LENGTHS, CIFAR_LENGTHS), strict=True
        ):
            ax.set_title(f"{label(row)} minus the row, {stream}")
            if not ax.has_data():
                not_yet_run(ax)
                continue
            ax.axhline(MARGIN, color="k", lw=0.8, ls=":")
            ax.set_ylabel("points of ACC")
            ax.set_xlabel("tasks; bars: 95 % interval; dotted: the margin")
            ax.set_xticks(lengths)
            ax.legend(fontsize=7)
    return figure


def _curves(ax, outcomes: Outcomes, row, rows, lengths, pattern: str) -> None:
    x = outcomes.get(pattern.format(row))
    for other in rows:
        y = outcomes.get(pattern.format(other))
        if other in PLAIN or x is None or y is None:
            continue
        _curve(ax, other, {t: after(x.result, t) - after(y.result, t) for t in lengths})


def _curve(ax, other: str, gaps: Mapping[int, Array]) -> None:
    """The mean over seeds with its 95 % interval, which is what decides."""
    found = [mean_of(gap) for gap in gaps.values()]
    means, low, high = (
        np.array([getattr(e, part) for e in found]) for part in ("value", "low", "high")
    )
    ax.errorbar(
        list(gaps),
        means,
        (means - low, high - means),
        fmt="o-",
        ms=3,
        lw=1.2,
        capsize=2,
        color=METHODS[other].colour,
        label=label(other),
    )


def _cifar_curves(ax, outcomes: Outcomes, row: str) -> None:
    for other in CIFAR_ROWS:
        if other in PLAIN:
            continue
        gaps = {}
        for tasks in CIFAR_LENGTHS:
            x, y = (outcomes.get(cifar_name(r, tasks)) for r in (row, other))
            if x is not None and y is not None:
                gaps[tasks] = after(x.result, tasks) - after(y.result, tasks)
        if gaps:
            _curve(ax, other, gaps)


CLAIM = Claim(
    name="short_term",
    number=10,
    statement="Short-term continual learning is easy: BP already does it.",
    source="The author's note.",
    rule="ACC after T tasks of BP, and of BP**, minus that of every dedicated method. "
    "Held, for each of the two and each stream: the lower end of the 95 % paired t "
    "interval is above −2 points against every method at T = 5 and at T = 10; did not "
    "hold if any interval lies wholly below.",
    runs=runs,
    questions=tuple(
        Question(f"{label(row)}, {stream}", make(row))
        for row in PLAIN
        for stream, make in (
            (STREAMS[0], permuted_effects),
            (STREAMS[1], cifar_effects),
        )
    ),
    figure=figure,
    notes=(
        "Permuted MNIST: one run of fifty tasks with a head per task, measured after "
        "5, 10, 20, 30 and 50. Split CIFAR-100 in 5, 10 and 20 tasks; ten tasks are "
        "the chart's runs.",
    ),
)
