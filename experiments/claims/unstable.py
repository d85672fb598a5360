"""Claim 2: BP is unstable over seeds, and some seeds forget everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxcl import statistics
from jaxcl.strategies import label

from ..runs.results import OK, Result
from . import at_rate
from .claim import Array, Claim, Effect, Estimate, Outcomes, Question, Run, above
from .figures import seeds_of_rows
from .streams import (
    FIRST_SEED,
    MNIST_ROWS,
    chart_run,
    permuted_run,
    split_mnist_run,
)

RATIO = 1.5
CHANCE_PLUS = 2.0
CIFAR_ROWS = ("bp", "bp_star_star", "ewc")
CIFAR_TASKS = 5


class StreamOf(NamedTuple):
    """A stream of the claim: its rows and the names of their runs.

    Attributes:
      name: in words.
      runs: row -> names of the runs that together have the row's seeds.
      tasks: T; None: all tasks of the run.
      chance: accuracy of guessing, in per cent.
    """

    name: str
    runs: Mapping[str, tuple[str, ...]]
    tasks: int | None
    chance: float


STREAMS = (
    StreamOf(
        "split CIFAR-100, five tasks",
        {row: (row, f"{row}_more") for row in CIFAR_ROWS},
        CIFAR_TASKS,
        10.0,
    ),
    StreamOf(
        "split MNIST",
        {row: (f"split_mnist_{row}",) for row in MNIST_ROWS},
        None,
        50.0,
    ),
    StreamOf(
        "permuted MNIST",
        {row: (f"permuted_{row}",) for row in MNIST_ROWS},
        None,
        10.0,
    ),
)


def more_seeds(setting: str, row: str) -> Run:
    """A row's additional seeds on the first five tasks of the chart's stream.

    The chart's own five seeds are measured after their fifth task.
    """
    run = chart_run(setting, row)
    config = run.config.copy_and_resolve_references()
    number = len(config.seeds)
    first = FIRST_SEED + number
    config.seeds = tuple(range(first, first + (15 if setting != "quick" else 2)))
    if setting != "quick":
        config.data.tasks = (0, CIFAR_TASKS)
    return run._replace(
        name=f"{row}_more", label=f"{run.label}, more seeds", config=config
    )


def runs(setting: str) -> tuple[Run, ...]:
    """Three streams: the short ones first, and BP at the other rows' rate last."""
    beside = () if setting != "toy" else at_rate.runs()
    return (
        *(split_mnist_run(setting, row) for row in MNIST_ROWS),
        *(permuted_run(setting, row) for row in MNIST_ROWS),
        *(chart_run(setting, row) for row in CIFAR_ROWS),
        *(more_seeds(setting, row) for row in CIFAR_ROWS),
        *beside,
    )


def after(result: Result, tasks: int | None) -> Array:
    """Accuracies in per cent on tasks 1 … T after task T [S, T]; NaN: failed seed."""
    t = min(tasks or len(result.task_names), len(result.task_names))
    healthy = np.array([status == OK for status in result.status])
    return np.where(healthy[:, None], 100 * result.matrix[:, t - 1, :t], np.nan)


def accuracies(outcomes: Outcomes, stream: StreamOf, row: str) -> Array:
    """Accuracies after the last task, for all of a row's seeds [S, T]."""
    found = [after(outcomes[n].result, stream.tasks) for n in stream.runs[row]]
    return np.concatenate(found)


def ratio(stream: StreamOf, row: str) -> Effect:
    """SD(BP)/SD(row) of ACC over the seeds, with its paired-bootstrap interval."""

    def estimate(outcomes: Outcomes) -> Estimate:
        bp, other = (accuracies(outcomes, stream, r).mean(1) for r in ("bp", row))
        found = statistics.sd_ratio(bp, other)
        failed = int(np.isnan(bp).sum() + np.isnan(other).sum())
        return Estimate(found.ratio, found.low95, found.high95, (), failed)

    return Effect(
        f"SD(BP)/SD({label(row)})",
        (*stream.runs["bp"], *stream.runs[row]),
        estimate,
        above(RATIO),
        unit="×",
    )


def forgot_all(accuracies: Array, chance: float) -> Array:
    """1 for a seed that forgot everything, else 0; NaN for a failed seed [S].

    Everything: the mean of tasks 1 … T−1 is at most 2 points above chance.
    """
    kept = accuracies[:, :-1].mean(1)
    return np.where(np.isnan(kept), np.nan, kept <= chance + CHANCE_PLUS)


def some_forget(stream: StreamOf) -> Effect:
    """How many of BP's seeds forgot everything: a count, so it has no interval."""

    def estimate(outcomes: Outcomes) -> Estimate:
        lost = forgot_all(accuracies(outcomes, stream, "bp"), stream.chance)
        count = float(np.nansum(lost))
        return Estimate(count, count, count, (), int(np.isnan(lost).sum()))

    name = f"BP's seeds that forgot everything, {stream.name}"
    return Effect(name, stream.runs["bp"], estimate, above(0.0), unit="seeds")


def shown(outcomes: Outcomes) -> list[str]:
    """BP's seeds that forgot, the interval of their share, BP's mean without them."""
    lines = [
        "| Stream | BP's seeds, not failed | Forgot everything "
        "| Exact 95 % interval of the share "
        "| BP's mean | Without them |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for stream in STREAMS:
        if any(name not in outcomes for name in stream.runs["bp"]):
            continue
        found = accuracies(outcomes, stream, "bp")
        found = found[~np.isnan(found).any(1)]  # what a failed seed kept is not known
        lost, acc = forgot_all(found, stream.chance) == 1, found.mean(1)
        low, high = statistics.share_interval(int(lost.sum()), len(lost))
        without = "–" if lost.all() else f"{acc[~lost].mean():.2f}"
        lines.append(
            f"| {stream.name} | {len(lost)} | {int(lost.sum())} "
            f"| [{low:.2f}, {high:.2f}] | {acc.mean():.2f} | {without} |"
        )
    lines = lines if len(lines) > 2 else []
    for stream in STREAMS:
        known = {
            row: accuracies(outcomes, stream, row).mean(1)
            for row, names in stream.runs.items()
            if all(name in outcomes for name in names)
        }
        lines += at_rate.lines(outcomes, stream.name, stream.runs, known)
    return lines


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """Each seed's ACC as a dot, one panel per stream."""
    panels = {}
    for stream in STREAMS:
        rows = {
            label(row): accuracies(outcomes, stream, row).mean(1)
            for row, names in stream.runs.items()
            if all(name in outcomes for name in names)
        }
        panels[stream.name] = rows
    return seeds_of_rows(panels)


CLAIM = Claim(
    name="unstable",
    number=2,
    statement="BP is unstable over seeds, and some seeds forget everything.",
    source="The author's note, which dropped the seeds that forgot everything.",
    rule="SD(BP)/SD(method) of ACC over 20 seeds. Held on a stream if the lower end of "
    "the paired-bootstrap 95 % interval is above 1.5 for every method. Some seeds "
    "forget everything, a verdict of its own: held if at least one of BP's ends with "
    "a mean of tasks 1 … T−1 at most 2 points above chance.",
    runs=runs,
    questions=(
        *(
            Question(s.name, tuple(ratio(s, row) for row in s.runs if row != "bp"))
            for s in STREAMS
        ),
        Question(
            "some seeds forget everything",
            tuple(some_forget(stream) for stream in STREAMS),
            rule="some",
        ),
    ),
    figure=figure,
    shown=shown,
    notes=(
        "Split CIFAR-100: seeds 200–204 are the chart's, measured after their fifth "
        "task of ten; seeds 205–219 are trained on the first five tasks alone, with "
        "the same heads.",
        "Both MNIST streams: 784-400-400, a head per task, SGD, batch 64, two epochs "
        "per task, one network for all rows.",
        "A row without a strength chooses among rates up to .2, one with a strength up "
        "to .05: a ratio also compares rates. BP at .05 stands beside and decides "
        "nothing.",
        "A percentile bootstrap of 20 seeds is too narrow: it covers a ratio of 1.5 in "
        "92 % of normal samples and in 90 % of skewed ones.",
    ),
)
