"""The figures of a comparison: accuracy, tasks over training, matrices, space.

A method has one colour in all of them. Seeds that failed are not drawn; the method's
name says how many there were. Accuracies are in per cent.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from experiments import notes
from experiments.tables import UNFINISHED, Row
from jaxcl.strategies.hat import SHARED

# Families share a hue: bounds are grey, penalties blue to teal, projections green,
# HAT purple, replay red to orange. Told apart under the common colour deficiencies by
# lightness; every bar and panel carries its name besides.
COLOURS = {
    "bp": "#B3B3B3",
    "bp_star": "#8A8A8A",
    "bp_star_star": "#5C5C5C",
    "joint": "#1A1A1A",
    "ewc": "#0072B2",
    "si": "#56B4E9",
    "mas": "#332288",
    "lwf": "#44AA99",
    "owm": "#999933",
    "gpm": "#117733",
    "hat": "#AA4499",
    "agem": "#882255",
    "er": "#E69F00",
    "derpp": "#D55E00",
}
SPARE = ("#CC6677", "#DDCC77", "#661100", "#88CCEE", "#CC79A7", "#6699CC")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
}
DPI = 120
NO_FIGURE = "no seed to show"


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draws every figure there is data for."""
    with matplotlib.rc_context(STYLE):
        drawn = {"bars": bars(rows), "tasks": tasks(rows), "matrix": matrix(rows)}
        with_space = [row for row in rows if row.result.space]
        if with_space:
            drawn["space"] = space(with_space)
        else:
            # An earlier report's figure would seem to belong to this one.
            (out / "space.png").unlink(missing_ok=True)
        gated = [row for row in with_space if _shared_layers(row)]
        if gated:
            drawn["capacity"] = capacity(gated)
        else:
            (out / "capacity.png").unlink(missing_ok=True)
        for name, figure in drawn.items():
            _save(figure, out / f"{name}.png")
    return [out / f"{name}.png" for name in drawn]


def colours(rows: Iterable[Row]) -> dict[str, str]:
    """A colour a method: fixed for known ones, from a spare list for others."""
    others = sorted({row.result.row for row in rows} - COLOURS.keys())
    return COLOURS | {name: SPARE[k % len(SPARE)] for k, name in enumerate(others)}


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
        # Lightened, for whiskers and dots to show on black and on indigo.
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
    ax.set_yticks(range(len(rows)), [_name(row) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 109)
    ax.set_xticks(range(0, 101, 20))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("ACC %: mean, lowest to highest seed, a dot a seed")
    ax.set_title("Average accuracy over all tasks after the last one")
    return figure


def tasks(rows: Sequence[Row]) -> Figure:
    """Accuracy of each task from when it was learned on: a panel a method."""
    most = max(len(row.result.task_names) for row in rows)
    figure, panels = _panels(rows, 2.5, 2.1, sharey=True)
    lowest = 100.0
    cmap = ListedColormap(
        matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(most, 2)))
    )
    for ax, row in zip(panels, rows, strict=True):
        t = len(row.result.task_names)
        a = 100 * row.result.matrix[row.finished_seeds]
        after = np.arange(1, t + 1)
        for j in range(t) if len(a) else ():
            _band(ax, after[j:], a[:, j:, j], cmap(j), 1.1, 0.10 if t > 5 else 0.18)
        so_far = np.tril(np.ones((t, t), bool))
        # A row that was not reached holds NaN, and so does its mean.
        seen = np.where(so_far, a, 0).sum(axis=2) / so_far.sum(axis=1)
        if len(a):
            mean = seen.mean(axis=0)
            ax.plot(after, mean, color="w", lw=3.4)
            ax.plot(after, mean, color="k", lw=1.8, ls=(0, (3, 1)))
            lowest = np.fmin(lowest, np.fmin.reduce(a[:, so_far], axis=None))
        else:
            ax.text(0.5, 0.5, NO_FIGURE, transform=ax.transAxes, ha="center")
        ax.set_xlim(0.7, t + 0.3)
    # One scale for all panels, from the ten below the lowest value shown.
    panels[0].set_ylim(min(90, 10 * math.floor(lowest / 10)) - 1, 101)
    figure.supxlabel("after training task", size=9)
    figure.supylabel("accuracy %", size=9)
    figure.suptitle(
        "Accuracy of each task over training\n"
        "band: lowest to highest seed; dashed: mean of the tasks so far",
        size=10,
    )
    norm = BoundaryNorm(np.arange(0.5, max(most, 2) + 1), max(most, 2))
    _colour_bar(figure, ScalarMappable(norm, cmap), "task", _ticks(most))
    return figure


def matrix(rows: Sequence[Row]) -> Figure:
    """Accuracy matrices, mean over seeds; tasks not trained yet are faded."""
    figure, panels = _panels(rows, 2.3, 2.25)
    cmap = matplotlib.colormaps["Blues"].resampled(20)
    for ax, row in zip(panels, rows, strict=True):
        t = len(row.result.task_names)
        a = row.result.matrix[row.finished_seeds]
        mean = 100 * a.mean(axis=0) if len(a) else np.full((t, t), np.nan)
        sides = (0.5, t + 0.5, t + 0.5, 0.5)
        ax.imshow(mean, cmap, vmin=0, vmax=100, extent=sides, aspect="auto")
        ax.grid(False)
        for i in range(t):
            for j in range(t):
                corner = (j + 0.5, i + 0.5)
                if np.isnan(mean[i, j]):
                    ax.add_patch(Rectangle(corner, 1, 1, fc="#EDEDED", ec="none"))
                    continue
                if j > i:
                    ax.add_patch(Rectangle(corner, 1, 1, fc="w", ec="none", alpha=0.6))
                if t <= 10:
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
        # The staircase between tasks trained and tasks to come.
        edge = np.repeat(np.arange(t + 1) + 0.5, 2)
        ax.plot(edge[2:-1], edge[1:-2], color="k", lw=1)
        ax.set_ylim(t + 0.5, 0.5)
        ax.set_yticks(_ticks(t))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(True)
    figure.supxlabel("accuracy on task", size=9)
    figure.supylabel("after training task", size=9)
    figure.suptitle(
        "Accuracy matrix\nmean over seeds; pale above the line: not trained yet",
        size=10,
    )
    scale = ScalarMappable(Normalize(0, 100), cmap)
    _colour_bar(figure, scale, "accuracy %", range(0, 101, 20))
    if any(row.unfinished or row.failed for row in rows):
        figure.legend(
            handles=[Patch(color="#EDEDED", label="not measured")],
            loc="outside lower right",
        )
    return figure


def space(rows: Sequence[Row]) -> Figure:
    """Share of each layer's space taken after each task: a panel a method."""
    figure, panels = _panels(rows, 3.4, 2.6, sharey=True)
    for ax, row in zip(panels, rows, strict=True):
        layers = notes.layers(row.result.space or {})
        t = len(row.result.task_names)
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
        for k, (layer, share) in enumerate(layers.items()):
            values = 100 * share[row.finished_seeds]
            if len(values):
                _band(ax, np.arange(1, t + 1), values, shades[k], 1.6, 0.2, layer)
        ax.set_xlim(0.7, t + 0.3)
        ax.set_ylim(0, 103)
        ax.legend(fontsize=7, ncols=1 + (len(layers) - 1) // 8, handlelength=1.2)
    figure.supxlabel("after training task", size=9)
    figure.supylabel("share of the layer taken %", size=9)
    figure.suptitle("Space taken by past tasks\nband: lowest to highest seed", size=10)
    return figure


def capacity(rows: Sequence[Row]) -> Figure:
    """What each task took of each layer: free units claimed, taken ones shared."""
    across = max(len(_shared_layers(row)) for row in rows)
    size = (max(5.0, 2.6 * across + 1.0), 2.3 * len(rows) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False, sharey=True)
    for row, line in zip(rows, grid, strict=True):
        space = row.result.space or {}
        layers = _shared_layers(row)
        for ax in line[len(layers) :]:
            ax.remove()
        for ax, layer in zip(line, layers, strict=False):
            taken = 100 * space[layer][row.finished_seeds].mean(axis=0)
            shared = 100 * space[layer + SHARED][row.finished_seeds].mean(axis=0)
            task = np.arange(1, len(taken) + 1)
            claimed = np.diff(taken, prepend=0)
            ax.bar(task, shared, color="#B3B3B3", label="shared")
            ax.bar(task, claimed, bottom=shared, color="#AA4499", label="claimed")
            ax.plot(task, 100 - taken, color="k", marker="o", ms=2.8, label="free")
            ax.set_title(f"{_name(row)}: {layer}")
            ax.set_xticks(_ticks(len(taken)))
            ax.set_ylim(0, 103)
    grid[0, 0].legend(fontsize=7)
    figure.supxlabel("task", size=9)
    figure.supylabel("share of the layer's units %", size=9)
    figure.suptitle("Units a task uses, and those left free after it", size=10)
    return figure


def _shared_layers(row: Row) -> list[str]:
    """Layers of which a result tells what each task reused."""
    space = row.result.space or {}
    return [name for name in notes.layers(space) if name + SHARED in space]


def _panels(
    rows: Sequence[Row], width: float, height: float, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A grid of panels titled by method, under its colour; unused places removed."""
    columns = min(len(rows), 4 if len(rows) != 5 and len(rows) != 6 else 3)
    lines = math.ceil(len(rows) / columns)
    size = (max(5.0, width * columns + 1.0), height * lines + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.set_layout_engine("constrained", hspace=0.06)
    colour = colours(rows)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=sharey).ravel()
    for ax in grid[len(rows) :]:
        ax.remove()
    for ax, row in zip(grid, rows, strict=False):
        ax.set_title(_name(row), pad=9)
        ax.set_xticks(_ticks(len(row.result.task_names)))
        ax.plot(
            (0, 1),
            (1.02, 1.02),
            color=colour[row.result.row],
            lw=4,
            transform=ax.transAxes,
            clip_on=False,
            solid_capstyle="butt",
        )
    return figure, list(grid[: len(rows)])


def _save(figure: Figure, file: Path) -> None:
    """Writes a PNG in its 128 most frequent colours, a third of the full size.

    A generic palette would shift the colours of thin lines; antialiasing can bear it.
    """
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    codes = pixels.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1])
    shades, where, counts = np.unique(codes, return_inverse=True, return_counts=True)
    every = shades[:, None] >> np.array([16, 8, 0]) & 255
    kept = every[np.argsort(-counts, kind="stable")[:128]]
    nearest = np.array(KDTree(kept).query(every)[1], np.uint8)
    image = Image.fromarray(nearest[where].reshape(pixels.shape[:2]), "P")
    image.putpalette(kept.astype(np.uint8).tobytes())
    image.save(file, optimize=True, dpi=(DPI, DPI))


def _ticks(count: int) -> range:
    """At most ten of the tasks 1..count."""
    return range(1, count + 1, math.ceil(count / 10))


def _colour_bar(
    figure: Figure, scale: ScalarMappable, label: str, ticks: Sequence[int]
) -> None:
    shrink = min(1, 4.5 / figure.get_figheight())
    bar = figure.colorbar(
        scale, ax=figure.axes, label=label, pad=0.01, aspect=25, shrink=shrink
    )
    bar.set_ticks(ticks)
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _band(
    ax: Axes,
    x: NDArray,
    values: NDArray,
    colour: Sequence[float],
    width: float,
    alpha: float,
    label: str | None = None,
) -> None:
    """A mean line over seeds [S, N] with its lowest-to-highest band."""
    low, high = values.min(axis=0), values.max(axis=0)
    ax.fill_between(x, low, high, color=colour, alpha=alpha, lw=0)
    ax.plot(x, values.mean(axis=0), color=colour, lw=width, label=label)
    ax.plot(x[:1], values.mean(axis=0)[:1], color=colour, marker="o", ms=2.8)


def _name(row: Row) -> str:
    """The method, marked where it is unfinished or has failed seeds."""
    name = row.label
    if row.unfinished:
        done, t = row.result.tasks_done, len(row.result.task_names)
        name += f" {UNFINISHED} {done}/{t} tasks"
    if row.failed:
        name += f" ({len(row.failed)}/{len(row.result.seeds)} failed)"
    return name
