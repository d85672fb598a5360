"""Claim 3: BP** rivals dedicated methods, because task 1 taught its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from jaxcl.strategies import label

from .claim import Claim, Effect, Outcomes, Question, Run, above
from .decide import difference
from .figures import intervals
from .streams import DEDICATED, MNIST_ROWS, chart_run, permuted_run, tiny_run

MARGIN = -2.0
TAUGHT = 2.0
CONTROLS = ("random_frozen", "linear")
# Stream -> how its runs' names begin, its dedicated rows, how a run is made.
STREAMS: Mapping[str, tuple[str, tuple[str, ...], Callable[[str, str], Run]]] = {
    "split CIFAR-100": ("", DEDICATED, chart_run),
    "permuted MNIST": ("permuted_", MNIST_ROWS[2:], permuted_run),
    "split Tiny-ImageNet": ("tiny_", ("ewc", "gpm", "hat", "agem"), tiny_run),
}
TAUGHT_STREAMS = ("split CIFAR-100", "permuted MNIST")


def runs(setting: str) -> tuple[Run, ...]:
    """BP**, its controls and the dedicated rows of each stream."""
    found = []
    for stream, (_, rows, make) in STREAMS.items():
        controls = CONTROLS if stream in TAUGHT_STREAMS else ()
        found += [make(setting, row) for row in ("bp_star_star", *rows, *controls)]
    return tuple(found)


def effects(stream: str, rows: tuple[str, ...], margin: float) -> tuple[Effect, ...]:
    """BP** minus each of some rows of a stream."""
    begin = STREAMS[stream][0]
    return tuple(
        difference(
            f"{begin}bp_star_star",
            f"{begin}{row}",
            f"BP** − {label(row)}",
            above(margin),
        )
        for row in rows
    )


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """BP** minus every other row, with its interval."""
    return intervals(report, "BP** minus the row, points")


CLAIM = Claim(
    name="rivals",
    number=3,
    statement="When the task is told, BP** rivals dedicated methods, because task 1 "
    "taught its features.",
    source="The author's note; the controls are this project's.",
    rule="ACC of BP** minus that of a row, seed by seed. Rivals, on a stream: the "
    "lower end of the 95 % paired t interval is above −2 points against every "
    "dedicated row; did not hold if against any row it lies wholly below. Taught by "
    "task 1: above +2 against a random frozen extractor and against a linear "
    "classifier of pixels.",
    runs=runs,
    questions=(
        *(
            Question(f"rivals, {stream}", effects(stream, rows, MARGIN))
            for stream, (_, rows, _) in STREAMS.items()
        ),
        *(
            Question(f"taught by task 1, {stream}", effects(stream, CONTROLS, TAUGHT))
            for stream in TAUGHT_STREAMS
        ),
    ),
    figure=figure,
    notes=(
        "Split CIFAR-100: the chart's runs.",
        "Permuted MNIST: 784-400-400, a head per task, batch 64, two epochs, 20 seeds.",
        "Split Tiny-ImageNet: a subset of the data set, 100 training and 25 test "
        "images of each class; the chart's network at an eighth of the width.",
    ),
)
