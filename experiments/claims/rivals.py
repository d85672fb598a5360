"""Claim 3: BP** rivals dedicated methods, because task 1 taught its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from jaxcl.strategies import label

from .claim import Claim, Effect, Outcome, Outcomes, Question, Run, above
from .decide import accuracy, difference
from .figures import draw_intervals
from .streams import DEDICATED, MNIST_ROWS, chart_run, permuted_run, tiny_run

MARGIN = -2.0
TAUGHT = 2.0
CONTROLS = ("random_frozen", "linear")
# Stream -> prefix of its runs' names, its dedicated rows, function that makes a run.
STREAMS: Mapping[str, tuple[str, tuple[str, ...], Callable[[str, str], Run]]] = {
    "split CIFAR-100": ("", DEDICATED, chart_run),
    "permuted MNIST": ("permuted_", MNIST_ROWS[2:], permuted_run),
    "split Tiny-ImageNet": ("tiny_", ("ewc", "gpm", "hat", "agem"), tiny_run),
}
TAUGHT_STREAMS = ("split CIFAR-100", "permuted MNIST")
TAUGHT_EPOCHS = (0, 1, 5)  # of task 1; with all its epochs the run is BP** itself


def runs(setting: str) -> tuple[Run, ...]:
    """BP**, its controls and the dedicated rows of each stream."""
    found = []
    for stream, (_, rows, make) in STREAMS.items():
        controls = CONTROLS if stream in TAUGHT_STREAMS else ()
        found += [make(setting, row) for row in ("bp_star_star", *rows, *controls)]
    found += [taught_for(setting, epochs) for epochs in TAUGHT_EPOCHS]
    return tuple(found[:-2] if setting == "quick" else found)


def taught_for(setting: str, epochs: int) -> Run:
    """The chart's BP**, with an extractor that learns only in task 1's first epochs."""
    run = chart_run(setting, "bp_star_star")
    config = run.config.copy_and_resolve_references()
    config.method.epochs = epochs
    return run._replace(
        name=f"bp_star_star_{epochs}",
        label=f"BP**, {epochs} epoch{'s' * (epochs != 1)} of task 1",
        config=config,
        tried=run.config,  # one rate for the whole curve
    )


def effects(stream: str, rows: tuple[str, ...], margin: float) -> tuple[Effect, ...]:
    """ACC of BP** minus that of each given row of a stream."""
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


def curve(outcomes: Outcomes) -> list[tuple[int, Outcome]]:
    """Epochs of task 1 that the extractor learned in, and the outcome of BP**."""
    names = {epochs: f"bp_star_star_{epochs}" for epochs in TAUGHT_EPOCHS}
    found = [(n, outcomes[name]) for n, name in names.items() if name in outcomes]
    whole = outcomes.get("bp_star_star")
    if whole is not None and whole.result.config is not None:
        found.append((whole.result.config["train"]["epochs"], whole))
    return found


def shown(outcomes: Outcomes) -> list[str]:
    """ACC of BP** for each number of epochs that its extractor learned in."""
    lines = [
        "| Epochs of task 1 that taught the extractor | ACC % | lowest, highest |",
        "| ---: | ---: | --- |",
    ]
    for epochs, outcome in curve(outcomes):
        acc = accuracy(outcome.result)
        lines.append(
            f"| {epochs} | {acc.mean():.2f} | {acc.min():.2f}, {acc.max():.2f} |"
        )
    return lines if len(lines) > 2 else []


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """BP** minus every other row; BP** against the epochs its extractor learned in."""
    figure = Figure(figsize=(9.5, 6.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_intervals(left, report, "BP** minus the row, points")
    points = [(epochs, accuracy(o.result)) for epochs, o in curve(outcomes)]
    if points:
        x = [epochs for epochs, _ in points]
        right.fill_between(
            x,
            [acc.min() for _, acc in points],
            [acc.max() for _, acc in points],
            color="#5C5C5C",
            alpha=0.2,
            lw=0,
        )
        right.plot(x, [acc.mean() for _, acc in points], "o-", color="#5C5C5C")
    right.set_xlabel("epochs of task 1 that\ntaught the extractor")
    right.set_ylabel("ACC of BP** %, split CIFAR-100")
    return figure


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
    shown=shown,
    notes=(
        "Split CIFAR-100: the chart's runs. The curve: the extractor learns in the "
        "first 0, 1, 5 or all 20 epochs of task 1, the heads in all, at BP**'s rate.",
        "Permuted MNIST: 784-400-400, a head per task, batch 64, two epochs, 20 seeds.",
        "Split Tiny-ImageNet: a subset of the data set, 100 training and 25 test "
        "images of each class; the chart's network at an eighth of the width.",
    ),
)
