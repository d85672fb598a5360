"""Figures that claims share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from jaxcl.strategies import METHODS

from .claim import Outcome, Outcomes
from .decide import NOT_RUN, accuracy

Published = Mapping[str, tuple[float, float | None, float | None]]


def bar_chart(outcomes: Outcomes, names: Sequence[str], published: Published) -> Figure:
    """ACC of each row, whiskers at its lowest and highest seed, and the author's value.

    Args:
      outcomes: what is finished; other rows are not drawn.
      names: of the rows, in drawing order.
      published: name -> the author's mean, lowest and highest seed.
    """
    shown = [outcomes[name] for name in names if name in outcomes]
    figure = Figure(figsize=(7.2, 1.2 + 0.4 * max(len(shown), 1)), layout="constrained")
    ax = figure.subplots()
    for y, outcome in enumerate(shown):
        _bar(ax, y, outcome)
        if outcome.run.name in published:
            mean, low, high = published[outcome.run.name]
            at = y + 0.3
            if low is not None:
                ax.plot([low, high], [at, at], color="#555555", lw=1)
            ax.plot(mean, at, "D", ms=4, color="#555555", mfc="w")
    ax.plot([], [], "D", ms=4, color="#555555", mfc="w", label="the author's value")
    ax.set_yticks(range(len(shown)), [o.run.label for o in shown])
    ax.set_ylim(len(shown) - 0.3, -0.7)
    ax.set_xlim(0, 100)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("ACC %: mean; whiskers: lowest and highest seed; a dot per seed")
    ax.legend(fontsize=7, loc="lower right")
    return figure


def _bar(ax: Any, y: float, outcome: Outcome) -> None:
    acc = accuracy(outcome.result)
    acc = acc[np.isfinite(acc)]
    if not acc.size:
        ax.text(1, y, "every seed failed", va="center", color="#777777")
        return
    # Lightened, so that whiskers and dots are visible on black and on indigo.
    shade = 0.25 + 0.75 * np.array(to_rgb(colour_of(outcome)))
    ax.barh(y, acc.mean(), 0.5, color=shade)
    low, high = acc.min(), acc.max()
    ax.plot([low, high], [y, y], color="k", lw=1)
    ax.plot([low, high], [y, y], ls="", marker="|", ms=7, color="k")
    at = y + np.linspace(-0.14, 0.14, acc.size)
    ax.scatter(acc, at, 7, "w", edgecolors="k", lw=0.5, zorder=3)
    ax.text(high + 1.2, y, f"{acc.mean():.1f}", va="center", size=8)


def colour_of(outcome: Outcome) -> str:
    """The row's colour in the table of methods; grey for methods of other packages."""
    method = METHODS.get(outcome.result.row)
    return (method.colour if method else None) or "#777777"


def seeds_of_rows(panels: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Each seed's ACC as a dot and the mean as a line, one panel per stream.

    Args:
      panels: stream -> row's label -> accuracies in per cent [S].
    """
    most = max([len(rows) for rows in panels.values()] + [1])
    size = (3.2 * len(panels) + 0.6, 1.2 + 0.24 * most)
    figure = Figure(figsize=size, layout="constrained")
    for ax, (title, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for y, acc in enumerate(rows.values()):
            known = np.asarray(acc)[np.isfinite(acc)]
            spread = y + np.linspace(-0.25, 0.25, max(known.size, 1))
            ax.scatter(known, spread[: known.size], 6, "#0072B2", lw=0, alpha=0.7)
            if known.size:
                ax.plot([known.mean()] * 2, [y - 0.35, y + 0.35], color="k", lw=1.2)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
        ax.set_title(title)
        ax.set_xlabel("ACC %, a dot per seed")
        ax.grid(axis="y", visible=False)
        if not rows:
            not_yet_run(ax)
    return figure


def not_yet_run(ax: Any) -> None:
    """Says so in a panel that would otherwise show axes of nothing."""
    ax.set(xticks=(), yticks=(), xlabel="", ylabel="")
    ax.text(0.5, 0.5, NOT_RUN, transform=ax.transAxes, ha="center", color="#777777")


VERDICT_COLOURS = {
    "held": "#117733",
    "did not hold": "#CC3311",
    "undecided": "#777777",
}


def intervals(report: Mapping[str, Any], unit: str) -> Figure:
    """Each effect of a claim with its interval and the margins of the claimed range.

    Args:
      report: of the claim.
      unit: of the effects, on the axis.
    """
    number = len(_known(report))
    figure = Figure(figsize=(7.2, 1.1 + 0.28 * max(number, 1)), layout="constrained")
    draw_intervals(figure.subplots(), report, unit)
    return figure


def _known(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The effects of a claim that have an interval, each with a name of its own.

    Where a name is there twice, the stream, the last part of the question, is added.
    """
    known = [
        (question["name"].rpartition(", ")[2], effect)
        for question in report["questions"]
        for effect in question["effects"]
        if effect.get("interval") and None not in effect["interval"]
    ]
    often = Counter(effect["name"] for _, effect in known)
    return [
        (e["name"] if often[e["name"]] == 1 else f"{e['name']}, {stream}", e)
        for stream, e in known
    ]


def draw_intervals(ax: Any, report: Mapping[str, Any], unit: str) -> None:
    """As `intervals`, drawn into a given panel."""
    effects = _known(report)
    for y, (_, effect) in enumerate(effects):
        colour = VERDICT_COLOURS[effect["verdict"]]
        ax.plot(effect["interval"], [y, y], color=colour, lw=2, solid_capstyle="butt")
        ax.plot(effect["effect"], y, "o", ms=4, color=colour)
        for margin in effect["claimed"]:
            if margin is not None:
                ax.plot([margin] * 2, [y - 0.4, y + 0.4], color="k", lw=1, ls=":")
    ax.set_yticks(range(len(effects)), [name for name, _ in effects], size=7)
    ax.set_ylim(max(len(effects), 1) - 0.4, -0.6)
    ax.set_xlabel(f"{unit}; line: 95 % interval; dotted: the margin")
    for verdict, colour in VERDICT_COLOURS.items():
        ax.plot([], [], color=colour, lw=2, label=verdict)
    ax.legend(fontsize=7)


HEAD_COLOURS = ("#B3B3B3", "#0072B2", "#44AA99", "#E69F00")


def grouped_bars(panels: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Bars side by side for each row: one panel per stream, one colour per quantity.

    Args:
      panels: stream -> row's label -> quantity -> values in per cent [S].
    """
    most = max([len(rows) for rows in panels.values()] + [1])
    figure = Figure(figsize=(4.0 * len(panels), 1.4 + 0.5 * most), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        for y, of_row in enumerate(rows.values()):
            places = np.linspace(-0.3, 0.3, max(len(of_row), 2))
            colours = zip(of_row.items(), places, HEAD_COLOURS, strict=False)
            for (name, values), at, colour in colours:
                known = np.asarray(values)[np.isfinite(values)]
                if known.size:
                    label = name if y == 0 else None
                    ax.barh(y + at, known.mean(), 0.18, color=colour, label=label)
                    ends = [known.min(), known.max()]
                    ax.plot(ends, [y + at] * 2, color="k", lw=0.8)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
        ax.set_title(title)
        ax.set_xlabel("accuracy %, whiskers: lowest, highest seed")
        ax.grid(axis="y", visible=False)
        if rows:
            figure.legend(
                *ax.get_legend_handles_labels(),
                fontsize=7,
                ncols=len(HEAD_COLOURS),
                loc="outside lower center",
            )
        else:
            not_yet_run(ax)
    return figure
