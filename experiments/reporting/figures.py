"""The figures of a comparison: accuracy, tasks over training, matrices, space.

A method has the same colour in all figures. Failed seeds are not drawn; their number
stands beside the method's name. Accuracies are in per cent.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from . import answer_figures, feature_figures
from .scores import Row
from .space_figures import capacity, shared_layers, space
from .style import (
    NO_FIGURE,
    STYLE,
    band,
    colour_bar,
    colours,
    entitle,
    forget,
    name_of,
    panels_of,
    save,
    save_svg,
    ticks,
)

# Figure -> the quantity that a run must have measured for it, and the drawing function.
FEATURES = {
    "rank": ("effective_rank", feature_figures.rank),
    "cka": ("cka", feature_figures.similarity),
    "probes": ("probe_ridge", feature_figures.probes),
    "confusion": ("confusion", answer_figures.confusion),
}


CURVES = 60
"""Most tasks that get a curve each in a panel."""


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draws each figure that has data, as PNG and SVG, with the benchmark in its title.

    Returns:
      The PNG files.
    """
    with matplotlib.rc_context(STYLE):
        drawn = {"bars": bars(rows), "tasks": tasks(rows), "matrix": matrix(rows)}
        with_space = [row for row in rows if row.result.report.get("taken")]
        if with_space:
            drawn["space"] = space(with_space)
        else:
            # A figure of an earlier report would seem to belong to this one.
            forget(out / "space")
        gated = [row for row in with_space if shared_layers(row)]
        if gated:
            drawn["capacity"] = capacity(gated)
        else:
            forget(out / "capacity")
        for name, (quantity, draw) in FEATURES.items():
            seen = feature_figures.with_quantity(rows, quantity)
            if seen:
                drawn[name] = draw(seen)
            else:
                forget(out / name)
        if feature_figures.own_of(rows):
            drawn["own"] = feature_figures.own(rows)
        else:
            forget(out / "own")
        for name, figure in drawn.items():
            entitle(figure, rows)
            save(figure, out / f"{name}.png")
            save_svg(figure, out / f"{name}.svg")
    return [out / f"{name}.png" for name in drawn]


def bars(rows: Sequence[Row]) -> Figure:
    """ACC of each method: mean, lowest and highest seed, every seed as a dot."""
    colour = colours(rows)
    figure = Figure(figsize=(7.2, 1.1 + 0.36 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for y, row in enumerate(rows):
        i = row.intervals["acc"]
        if not i.n:
            ax.text(1, y, NO_FIGURE, va="center", color="#777777", style="italic")
            continue
        # Lightened, so that whiskers and dots are visible on black and on indigo.
        shade = 0.25 + 0.75 * np.array(to_rgb(colour[row.result.row]))
        hatch = "////" if row.unfinished else None
        ax.barh(y, 100 * i.mean, 0.66, color=shade, hatch=hatch, edgecolor="w")
        if i.n > 1:
            low, high = 100 * i.minimum, 100 * i.maximum
            ax.plot([low, high], [y, y], color="k", lw=1)
            ax.plot([low, high], [y, y], ls="", marker="|", ms=8, color="k")
        scores = row.scores["acc"]
        seeds = 100 * scores[~np.isnan(scores)]
        at = y + np.linspace(-0.2, 0.2, i.n) if i.n > 1 else [y]
        ax.scatter(seeds, at, 9, "w", edgecolors="k", lw=0.6, zorder=3)
        ax.text(100 * i.maximum + 1.5, y, f"{100 * i.mean:.2f}", va="center")
    ax.set_yticks(range(len(rows)), [name_of(row) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 109)
    ax.set_xticks(range(0, 101, 20))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("ACC %: mean, lowest to highest seed, a dot a seed")
    ax.set_title("Average accuracy over all tasks after the last one")
    return figure


def tasks(rows: Sequence[Row]) -> Figure:
    """Accuracy of each task from the time that it was learned: a panel per method.

    Of more than `CURVES` tasks, each k-th.
    """
    most = max(len(row.result.task_names) for row in rows)
    each = math.ceil(most / CURVES)
    figure, panels = panels_of(rows, 2.5, 2.1, sharey=True)
    lowest = 100.0
    cmap = ListedColormap(
        matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(most, 2)))
    )
    for ax, row in zip(panels, rows, strict=True):
        t = len(row.result.task_names)
        a = 100 * row.result.matrix[row.finished_seeds]
        after = np.arange(1, t + 1)
        for j in range(0, t, each) if len(a) else ():
            band(ax, after[j:], a[:, j:, j], cmap(j), 1.1, 0.10 if t > 5 else 0.18)
        so_far = np.tril(np.ones((t, t), bool))
        # A row of the matrix that was not reached is NaN, and so is its mean.
        seen = np.where(so_far, a, 0).sum(axis=2) / so_far.sum(axis=1)
        if len(a):
            mean = seen.mean(axis=0)
            ax.plot(after, mean, color="w", lw=3.4)
            ax.plot(after, mean, color="k", lw=1.8, ls=(0, (3, 1)))
            lowest = np.fmin(lowest, np.fmin.reduce(a[:, so_far], axis=None))
        else:
            ax.text(0.5, 0.5, NO_FIGURE, transform=ax.transAxes, ha="center")
        ax.set_xlim(0.7, t + 0.3)
    # One scale for all panels, from the multiple of ten below the lowest value shown.
    panels[0].set_ylim(min(90, 10 * math.floor(lowest / 10)) - 1, 101)
    figure.supxlabel("after training task", size=9)
    figure.supylabel("accuracy %", size=9)
    whose = "each task" if each == 1 else f"tasks 1, {1 + each}, {1 + 2 * each}, …"
    figure.suptitle(
        f"Accuracy of {whose} over training\n"
        "band: lowest to highest seed; dashed: mean of the tasks so far",
        size=10,
    )
    norm = BoundaryNorm(np.arange(0.5, max(most, 2) + 1), max(most, 2))
    colour_bar(figure, ScalarMappable(norm, cmap), "task", ticks(most))
    return figure


def matrix(rows: Sequence[Row]) -> Figure:
    """Accuracy matrices, mean over seeds; tasks not trained yet are faded."""
    figure, panels = panels_of(rows, 2.3, 2.25)
    cmap = matplotlib.colormaps["Blues"].resampled(20)
    for ax, row in zip(panels, rows, strict=True):
        t = len(row.result.task_names)
        a = row.result.matrix[row.finished_seeds]
        mean = 100 * a.mean(axis=0) if len(a) else np.full((t, t), np.nan)
        sides = (0.5, t + 0.5, t + 0.5, 0.5)
        ax.imshow(mean, cmap, vmin=0, vmax=100, extent=sides, aspect="auto")
        ax.grid(False)
        over = np.zeros((t, t, 4))  # red, green, blue, opacity
        over[np.triu_indices(t, 1)] = (1, 1, 1, 0.6)
        over[np.isnan(mean)] = to_rgba("#EDEDED")
        ax.imshow(over, extent=sides, aspect="auto")
        for i, j in itertools.product(range(t), repeat=2) if t <= 10 else ():
            if np.isnan(mean[i, j]):
                continue
            dark = mean[i, j] > 60 and j <= i
            ax.text(
                j + 1,
                i + 1,
                f"{mean[i, j]:.0f}",
                size=max(6, 9.5 - 0.35 * t),
                color="w" if dark else "#333333" if j <= i else "#8A8A8A",
                ha="center",
                va="center",
            )
        # The stepped line between tasks already trained and later ones.
        edge = np.repeat(np.arange(t + 1) + 0.5, 2)
        ax.plot(edge[2:-1], edge[1:-2], color="k", lw=1)
        ax.set_ylim(t + 0.5, 0.5)
        ax.set_yticks(ticks(t))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(True)
    figure.supxlabel("accuracy on task", size=9)
    figure.supylabel("after training task", size=9)
    figure.suptitle(
        "Accuracy matrix\nmean over seeds; pale above the line: not trained yet",
        size=10,
    )
    scale = ScalarMappable(Normalize(0, 100), cmap)
    colour_bar(figure, scale, "accuracy %", range(0, 101, 20))
    if any(row.unfinished or row.failed for row in rows):
        figure.legend(
            handles=[Patch(color="#EDEDED", label="not measured")],
            loc="outside lower right",
        )
    return figure
