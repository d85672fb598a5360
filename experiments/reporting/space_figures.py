"""Figures of the space that methods use: shares of layers, claimed units."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxcl.strategies import METHODS

from .scores import Row
from .style import band, layer_colours, name_of, panels_of, plain, ticks


def space(rows: Sequence[Row]) -> Figure:
    """Share of each layer's space that is taken after each task: a panel per method."""
    figure, panels = panels_of(rows, 3.4, 2.6, sharey=True)
    shade = layer_colours(row.result.report.get("taken", {}) for row in rows)
    for ax, row in zip(panels, rows, strict=True):
        layers = row.result.report.get("taken", {})
        t = len(row.result.task_names)
        for layer, share in layers.items():
            values = 100 * share[row.finished_seeds]
            if len(values):
                band(ax, np.arange(1, t + 1), values, shade[layer], 1.6, 0.2, layer)
        ax.set_xlim(0.7, t + 0.3)
        ax.set_ylim(0, 103)
        ax.legend(fontsize=7, ncols=1 + (len(layers) - 1) // 8, handlelength=1.2)
    figure.supxlabel("after training task", size=9)
    figure.supylabel("share of the layer taken %", size=9)
    figure.suptitle("Space taken by past tasks\nband: lowest to highest seed", size=10)
    return figure


def capacity(rows: Sequence[Row]) -> Figure:
    """Each task's units in each layer: free units claimed, taken units shared."""
    purple = METHODS["hat"].colour
    across = max(len(shared_layers(row)) for row in rows)
    size = (max(5.0, 2.6 * across + 1.0), 2.3 * len(rows) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False, sharey=True)
    for row, line in zip(rows, grid, strict=True):
        report = row.result.report
        layers = shared_layers(row)
        for ax in line[len(layers) :]:
            ax.remove()
        for ax, layer in zip(line, layers, strict=False):
            taken = 100 * report["taken"][layer][row.finished_seeds].mean(axis=0)
            shared = 100 * report["shared"][layer][row.finished_seeds].mean(axis=0)
            task = np.arange(1, len(taken) + 1)
            claimed = np.diff(taken, prepend=0)
            ax.bar(task, shared, color="#B3B3B3", label="shared")
            ax.bar(task, claimed, bottom=shared, color=purple, label="claimed")
            ax.plot(task, 100 - taken, color="k", marker="o", ms=2.8, label="free")
            ax.set_title(f"{name_of(row)}: {plain(layer)}")
            ax.set_xticks(ticks(len(taken)))
            ax.set_ylim(0, 103)
    grid[0, 0].legend(fontsize=7)
    figure.supxlabel("task", size=9)
    figure.supylabel("share of the layer's units %", size=9)
    figure.suptitle("Units a task uses, and those left free after it", size=10)
    return figure


def shared_layers(row: Row) -> list[str]:
    """Layers for which a result reports both the taken and the shared units."""
    report = row.result.report
    return [name for name in report.get("shared", {}) if name in report["taken"]]
