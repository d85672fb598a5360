"""Claim 6: HAT does not forget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from .claim import Claim, Effect, Estimate, Outcomes, Question, Run, above
from .decide import backward, mean_of
from .figures import intervals
from .streams import chart_run, permuted_run

MARGIN = -0.5
STREAMS = {
    "hat": "split CIFAR-100",
    "permuted_hat": "permuted MNIST",
    "permuted_30_hat": "permuted MNIST, 30 tasks",
}


def runs(setting: str) -> tuple[Run, ...]:
    """HAT on three streams: the chart's, ten permuted tasks, thirty permuted tasks."""
    long = permuted_run(setting, "hat", tasks=30, number=5)
    return (
        chart_run(setting, "hat"),
        permuted_run(setting, "hat"),
        long._replace(name="permuted_30_hat", label="HAT, 30 tasks"),
    )


def effect(name: str) -> Effect:
    """BWT of one run."""

    def estimate(outcomes: Outcomes) -> Estimate:
        return mean_of(backward(outcomes[name].result))

    return Effect(f"BWT of HAT, {STREAMS[name]}", (name,), estimate, above(MARGIN))


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """BWT of each stream with its interval."""
    return intervals(report, "BWT, points")


CLAIM = Claim(
    name="hat_forgets",
    number=6,
    statement="HAT does not forget.",
    source="The author's note.",
    rule="BWT of HAT on each stream. Held: the lower end of the 95 % t interval is "
    "above −0.5 points; did not hold: the upper end is below it.",
    runs=runs,
    questions=tuple(Question(STREAMS[name], (effect(name),)) for name in STREAMS),
    figure=figure,
    notes=(
        "Split CIFAR-100 is the chart's run of HAT. Both permuted streams: 784-400-400 "
        "with a head per task, two epochs; their settings are chosen on validation "
        "data of tasks 1–3 of seed 199.",
    ),
)
