"""Claim 5: on permuted MNIST BP** does well, because training raises the rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import bootstrap, spearmanr

from jaxcl.strategies import METHODS, label

from .claim import Array, Claim, Effect, Estimate, Outcomes, Question, Run, above
from .decide import accuracy, difference, mean_of
from .ranks import ranks
from .streams import MNIST_ROWS, permuted_run

WIDTHS = (100, 400, 1000)
WIDTH = 400  # the width in other claims, with 20 seeds
NEAR_JOINT = -5.0
ROWS = ("bp", "bp_star_star", "joint", "random_frozen", "linear")


def name_of(row: str, width: int) -> str:
    """The name of a row's run at one width."""
    return f"permuted_{row}" if width == WIDTH else f"width_{width}_{row}"


def runs(setting: str) -> tuple[Run, ...]:
    """Width 400 with 20 seeds and every row, the other widths with five."""
    if setting == "quick":
        few = [permuted_run(setting, row)._replace(measure=ranks) for row in ROWS[:2]]
        return (*few, *(permuted_run(setting, row) for row in ROWS[2:]))
    found = [permuted_run(setting, row) for row in MNIST_ROWS]
    found += [permuted_run(setting, row) for row in ROWS[2:]]
    for width in WIDTHS:
        if width == WIDTH:
            continue
        for row in ROWS:
            # A linear classifier of pixels has no width; five seeds of it are enough.
            fields = {} if row == "linear" else {"model.widths": (width, width)}
            run = permuted_run(setting, row, number=5, **fields)
            title = f"{run.label}, width {width}"
            found.append(run._replace(name=name_of(row, width), label=title))
    # OWM comes last: its accuracies cost an hour, and its rank decides nothing.
    found.sort(key=lambda run: run.name == "permuted_owm")
    return tuple(
        run if "linear" in run.name else run._replace(measure=ranks) for run in found
    )


def raises(width: int) -> Effect:
    """Effective rank of BP's last hidden layer after a task minus before the task."""
    name = name_of("bp", width)

    def estimate(outcomes: Outcomes) -> Estimate:
        return mean_of(np.asarray(outcomes[name].measured["rise"]))

    return Effect(
        f"rank after a task − before, width {width}",
        (name,),
        estimate,
        above(0.0),
        unit="directions",
    )


def does_well(width: int) -> tuple[Effect, ...]:
    """BP** minus joint training, and minus the two rows without trained features."""
    ours = name_of("bp_star_star", width)
    return tuple(
        difference(
            ours, name_of(row, width), f"BP** − {label(row)}, width {width}", above(m)
        )
        for row, m in (("joint", NEAR_JOINT), ("random_frozen", 0.0), ("linear", 0.0))
    )


def scatter(outcomes: Outcomes) -> Mapping[str, tuple[Array, Array]]:
    """Row -> final rank and ACC of each seed, for the rows at width 400."""
    found = {}
    for row in MNIST_ROWS:
        outcome = outcomes.get(f"permuted_{row}")
        if outcome is not None and "final" in outcome.measured:
            acc, rank = accuracy(outcome.result), np.asarray(outcome.measured["final"])
            known = np.isfinite(acc) & np.isfinite(rank)
            found[row] = (rank[known], acc[known])
    return found


def correlation(rank: Array, acc: Array) -> tuple[float, float, float]:
    """Spearman's ρ over seeds with its bootstrap interval; NaN if it is undefined."""
    if len(rank) < 4 or np.ptp(rank) == 0 or np.ptp(acc) == 0:
        return float("nan"), float("nan"), float("nan")

    def rho(x, y):
        return spearmanr(x, y).statistic

    found = bootstrap(
        (rank, acc),
        rho,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return float(rho(rank, acc)), float(low), float(high)


def shown(outcomes: Outcomes) -> list[str]:
    """Rise of the rank in the first and in later tasks; rank against accuracy."""
    lines = []
    told = [(w, outcomes.get(name_of("bp", w))) for w in WIDTHS]
    if any(outcome and "rise" in outcome.measured for _, outcome in told):
        lines += [
            "Effective rank of BP's last hidden layer, mean over seeds:",
            "",
            "| Width | untrained | rise, task 1 | rise, tasks 2 … T | after T |",
            "| ---: | ---: | ---: | ---: | ---: |",
        ]
        for width, outcome in told:
            if outcome and "rise" in outcome.measured:
                m = {k: np.nanmean(v) for k, v in outcome.measured.items()}
                lines.append(
                    f"| {width} | {m['untrained']:.1f} | {m['first_rise']:+.1f} "
                    f"| {m['later_rise']:+.1f} | {m['final']:.1f} |"
                )
        lines.append("")
    points = scatter(outcomes)
    if points:
        lines += [
            "Does rank predict accuracy? Spearman's ρ over seeds, width 400; decides "
            "nothing:",
            "",
            "| Row | Seeds | ρ | 95 % interval |",
            "| --- | ---: | ---: | --- |",
        ]
        for row, (rank, acc) in points.items():
            rho, low, high = correlation(rank, acc)
            lines.append(
                f"| {label(row)} | {len(rank)} | {rho:.2f} | [{low:.2f}, {high:.2f}] |"
            )
        pooled = [np.concatenate(part) for part in zip(*points.values(), strict=True)]
        rho, low, high = correlation(*pooled)
        lines.append(
            f"| all rows pooled (confounded by method) | {len(pooled[0])} | {rho:.2f} "
            f"| [{low:.2f}, {high:.2f}] |"
        )
    return lines


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """Rank before and after each task, for each width; rank against accuracy."""
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, width in enumerate(WIDTHS):
        outcome = outcomes.get(name_of("bp", width))
        if outcome is None or "rise" not in outcome.measured:
            continue
        m, tasks = outcome.measured, len(outcome.result.task_names)
        colour = ("#56B4E9", "#0072B2", "#332288")[i]
        for part, style in (("before", ":"), ("after", "-")):
            curves = np.array([m[f"{part}_{t}"] for t in range(tasks)])  # [T, S]
            at = np.arange(1, tasks + 1)
            text = f"width {width}, {part}"
            left.plot(at, np.nanmean(curves, 1), style, color=colour, label=text)
            if part == "after":
                ends = np.nanmin(curves, 1), np.nanmax(curves, 1)
                left.fill_between(at, *ends, color=colour, alpha=0.2, lw=0)
    left.set_title("BP's last hidden layer, on the task's images")
    left.set_xlabel("task")
    left.set_ylabel("effective rank")
    for row, (rank, acc) in scatter(outcomes).items():
        right.plot(rank, acc, "o", ms=3, color=METHODS[row].colour, label=label(row))
    right.set_title("after the last task, a dot per seed")
    right.set_xlabel("effective rank")
    right.set_ylabel("ACC %")
    for ax in (left, right):
        if ax.has_data():
            ax.legend(fontsize=6)
    return figure


CLAIM = Claim(
    name="rank",
    number=5,
    statement="On permuted MNIST BP** does well, because training raises the rank of "
    "the feature matrix.",
    source="The author's note.",
    rule="Does well, per width: the lower end of the 95 % paired t interval of BP** − "
    "joint is above −5 points, of BP** − random frozen features and of BP** − a linear "
    "classifier above 0. Raises: the effective rank of BP's last hidden layer on 1,000 "
    "test images of each task, just after the task minus just before, mean over "
    "tasks, has its lower end above 0.",
    runs=runs,
    questions=(
        *(Question(f"does well, width {w}", does_well(w)) for w in WIDTHS),
        *(Question(f"raises the rank, width {w}", (raises(w),)) for w in WIDTHS),
    ),
    figure=figure,
    shown=shown,
    notes=(
        "784-W-W with a head per task, batch 64, two epochs per task; width 400 with "
        "20 seeds, the others with five.",
        "What rank tells is open. Garrido et al. (RankMe, ICML 2023, "
        "https://arxiv.org/abs/2210.02885) measure that the effective rank of a "
        "self-supervised network's embeddings goes with its accuracy downstream, "
        "between runs of one method. Dohare et al. (Nature 2024, "
        "https://doi.org/10.1038/s41586-024-07711-7) measure that the effective rank "
        "of a network trained by backpropagation falls over hundreds of permuted MNIST "
        "tasks. Lyle et al. (ICML 2023, https://arxiv.org/abs/2303.01486) measure a "
        "network's loss of the ability to learn, and find it tied to the curvature of "
        "the loss rather than to units that have died.",
    ),
)
