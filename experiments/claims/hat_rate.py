"""Claim 8: HAT needs a learning rate of at most .05."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcl.strategies import METHODS, label

from ..runs.results import OK, Result
from .claim import (
    Array,
    Claim,
    Effect,
    Estimate,
    Outcomes,
    Question,
    Run,
    above,
    below,
)
from .decide import mean_of
from .streams import chart_run, permuted_run

RATES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.5)
TOO_HIGH = 0.1
HALF = 0.5
ROWS = ("hat", "bp")
OPTIMIZERS = {"plain SGD": 0.0, "momentum .9": 0.9}
# Stream -> prefix of its runs' names, chance accuracy of a task in per cent.
STREAMS = {"permuted MNIST": ("rate_permuted", 10.0), "split CIFAR-100": ("rate", 10.0)}
STRENGTH = 0.75  # HAT's λ, as published
CIFAR_TASKS = 2


def name_of(stream: str, optimizer: str, row: str, rate: float) -> str:
    """The name of a run."""
    short = "momentum" if OPTIMIZERS[optimizer] else "plain"
    return f"{STREAMS[stream][0]}_{row}_{short}_{rate:g}"


def runs(setting: str) -> tuple[Run, ...]:
    """Both rows at every rate, the short stream first; chooses nothing."""
    quick = setting == "quick"
    return tuple(
        _run(setting, stream, optimizer, row, rate)
        for stream in tuple(STREAMS)[: 1 if quick else None]
        for optimizer in tuple(OPTIMIZERS)[: 1 if quick else None]
        for row in ROWS
        for rate in RATES[-2 if quick else 0 :]
    )


def _run(setting: str, stream: str, optimizer: str, row: str, rate: float) -> Run:
    if stream == "permuted MNIST":
        run = permuted_run(setting, row, number=5)
    else:
        run = chart_run(setting, row)
    config = run.config.copy_and_resolve_references()
    if stream != "permuted MNIST" and setting != "quick":
        config.data.tasks = (0, CIFAR_TASKS)
    momentum = OPTIMIZERS[optimizer]
    config.optimizer.update(lr=rate, momentum=momentum, nesterov=False)
    config.train.patience = None
    config.measure = "valid"
    config.keep_weights = "none"
    if row == "hat":
        config.method.strength = STRENGTH
    return Run(
        name_of(stream, optimizer, row, rate),
        f"{label(row)}, {optimizer}, {rate:g}",
        config,
    )


def learned(result: Result, chance: float) -> Array:
    """Mean over tasks of A[j, j] minus chance, in points [S]; 0 for a failed seed."""
    own = 100 * np.diagonal(result.matrix, axis1=1, axis2=2).mean(1) - chance
    return np.where([status == OK for status in result.status], own, 0.0)


def best_rate(outcomes: Outcomes, stream: str, optimizer: str, row: str) -> float:
    """The rate at which a row learns most in the mean over seeds."""
    chance = STREAMS[stream][1]

    def score(rate: float) -> float:
        outcome = outcomes[name_of(stream, optimizer, row, rate)]
        return float(learned(outcome.result, chance).mean())

    return max(RATES, key=score)


def share(stream: str, optimizer: str, row: str) -> Effect:
    """What a row learns at .1 divided by what it learns at its best rate."""
    needs = tuple(name_of(stream, optimizer, row, rate) for rate in RATES)
    chance = STREAMS[stream][1]

    def estimate(outcomes: Outcomes) -> Estimate:
        best = best_rate(outcomes, stream, optimizer, row)
        here, there = (
            learned(outcomes[name_of(stream, optimizer, row, r)].result, chance)
            for r in (TOO_HIGH, best)
        )
        # A best rate at which a seed learned nothing has no share: the seed failed.
        there = np.where(there > 0, there, np.nan)
        if best == TOO_HIGH:  # 1 by definition, not an estimate that has an interval
            return Estimate(1.0, 1.0, 1.0, (), int(np.isnan(there).sum()))
        return mean_of(here / there)

    return Effect(
        f"{label(row)}: learned at .1 / at its best rate, {optimizer}",
        needs,
        estimate,
        below(HALF) if row == "hat" else above(HALF),
        unit="×",
    )


def shown(outcomes: Outcomes) -> list[str]:
    """The usable rates: those that learn at least half as much as the best rate."""
    lines = []
    for stream, (_, chance) in STREAMS.items():
        for optimizer in OPTIMIZERS:
            for row in ROWS:
                names = [name_of(stream, optimizer, row, rate) for rate in RATES]
                if any(name not in outcomes for name in names):
                    continue
                means = [learned(outcomes[n].result, chance).mean() for n in names]
                usable = [
                    f"{rate:g}"
                    for rate, mean in zip(RATES, means, strict=True)
                    if mean >= HALF * max(means)
                ]
                each = " ".join(f"{mean:.1f}" for mean in means)
                lines.append(
                    f"| {stream} | {optimizer} | {label(row)} | {each} "
                    f"| {', '.join(usable)} |"
                )
    if not lines:
        return []
    rates = " ".join(f"{rate:g}" for rate in RATES)
    return [
        f"| Stream | Optimizer | Row | Points above chance at {rates} | Usable |",
        "| --- | --- | --- | --- | --- |",
        *lines,
    ]


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """What HAT and BP learn at each rate: one panel per stream and optimizer.

    A stream that is not yet run has no panels.
    """
    drawn = [
        stream
        for stream in STREAMS
        if any(
            name_of(stream, optimizer, row, rate) in outcomes
            for optimizer in OPTIMIZERS
            for row in ROWS
            for rate in RATES
        )
    ] or list(STREAMS)
    size = (7.2, 0.4 + 2.3 * len(drawn))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(drawn), 2, sharex=True, sharey=True, squeeze=False)
    for i, stream in enumerate(drawn):
        chance = STREAMS[stream][1]
        for j, optimizer in enumerate(OPTIMIZERS):
            ax = axes[i, j]
            for row in ROWS:
                found = [
                    (rate, learned(outcomes[name].result, chance))
                    for rate in RATES
                    if (name := name_of(stream, optimizer, row, rate)) in outcomes
                ]
                if not found:
                    continue
                at = [rate for rate, _ in found]
                colour = METHODS[row].colour
                means = [v.mean() for _, v in found]
                ax.plot(at, means, "o-", ms=3, color=colour, label=label(row))
                for rate, values in found:
                    ax.plot([rate] * 2, [values.min(), values.max()], color=colour)
                ax.legend(fontsize=7)
            ax.axvline(0.05, color="k", lw=0.8, ls=":")
            ax.set_xscale("log")
            ax.set_title(f"{stream}, {optimizer}")
    for ax in axes[-1]:
        ax.set_xlabel("learning rate")
    for ax in axes[:, 0]:
        ax.set_ylabel("A[j, j] above chance, points")
    return figure


CLAIM = Claim(
    name="hat_rate",
    number=8,
    statement="HAT needs a learning rate of at most .05, in a narrow range.",
    source="The author's note (“strict” in one place, “a narrow range” in another).",
    rule="Learned: the mean over tasks of A[j, j] above chance; a seed that diverges "
    "has learned 0. Held, per stream and optimizer: the upper end of the 95 % t "
    "interval of HAT's learned at .1 over learned at its best rate is below ½, while "
    "BP's lower end is above it.",
    runs=runs,
    questions=tuple(
        Question(
            f"{stream}, {optimizer}",
            tuple(share(stream, optimizer, row) for row in ROWS),
        )
        for stream in STREAMS
        for optimizer in OPTIMIZERS
    ),
    figure=figure,
    shown=shown,
    notes=(
        "Accuracies are on validation data that nothing was trained on: the best rate "
        "is found on them, and no test data is touched. HAT's λ is .75, as published.",
        "Permuted MNIST: 784-400-400, ten tasks, two epochs each. Split CIFAR-100: the "
        "chart's network and its cosine schedule, two tasks.",
    ),
)
