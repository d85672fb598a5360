"""Figures of features: rank and own measures, similarity, accuracy of probes."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .feature_scores import layers
from .feature_scores import own as own_of
from .scores import Row
from .style import band, colour_bar, layer_colours, name_of, panels_of, plain


def with_quantity(rows: Sequence[Row], quantity: str) -> list[Row]:
    """The rows whose runs have measured a quantity, of a layer or of the outputs."""
    return [
        row
        for row in rows
        if row.result.tasks_done
        and row.finished_seeds.any()
        and any(name.startswith(f"{quantity}/") for name in row.result.features)
    ]


def rank(rows: Sequence[Row]) -> Figure:
    """Effective rank of each task's examples, before and after the task is trained."""
    figure, panels = panels_of(rows, 3.4, 2.6)
    shade = layer_colours(map(layers, rows))
    for ax, row in zip(panels, rows, strict=True):
        _around_each_task(ax, row, "effective_rank", shade)
    figure.supylabel("effective rank", size=9)
    _explain(figure, "Effective rank of the features of a task's examples")
    return figure


def own(rows: Sequence[Row]) -> Figure:
    """Each quantity of a user's function, as `rank`: a panel for it and each row."""
    of = [(q, row) for q in own_of(rows) for row in with_quantity(rows, q)]
    figure, panels = panels_of([row for _, row in of], 3.4, 2.6)
    shade = layer_colours(map(layers, rows))
    for ax, (quantity, row) in zip(panels, of, strict=True):
        _around_each_task(ax, row, quantity, shade)
        ax.set_ylabel(plain(quantity), size=9)
    _explain(figure, "Own measures of the features of a task's examples")
    return figure


def _around_each_task(ax: Axes, row: Row, quantity: str, shade) -> None:
    """A layer's quantity on each task's examples, after the task and before it."""
    done, lowest = row.result.tasks_done, [0.0]
    task = np.arange(1, done + 1)
    for layer in layers(row):
        values = row.result.features.get(f"{quantity}/{layer}")
        if values is None:
            continue
        values = values[row.finished_seeds]
        after = np.diagonal(values, -1, -2, -1)[:, :done]
        before = np.diagonal(values, 0, -2, -1)[:, :done]
        lowest += [after.min(), before.min()]
        band(ax, task, after, shade[layer], 1.6, 0.2, layer)
        ax.plot(task, before.mean(axis=0), color=shade[layer], lw=1, ls="--")
    ax.set_xlim(0.7, len(row.result.task_names) + 0.3)
    if min(lowest) == 0:
        ax.set_ylim(bottom=0)
    ax.legend(fontsize=7, handlelength=1.2)


def _explain(figure: Figure, title: str) -> None:
    figure.supxlabel("task", size=9)
    figure.suptitle(
        f"{title}\n"
        "solid: after the task, with lowest to highest seed; dashed: before it",
        size=9,
    )


def similarity(rows: Sequence[Row]) -> Figure:
    """CKA of the first task's features between each pair of times in a run."""
    across = max(len(layers(row)) for row in rows)
    size = (max(5.0, 2.3 * across + 1.2), 2.2 * len(rows) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False)
    cmap = matplotlib.colormaps["viridis"]
    for row, line in zip(rows, grid, strict=True):
        names, done = layers(row), row.result.tasks_done
        for ax in line[len(names) :]:
            ax.remove()
        for ax, layer in zip(line, names, strict=False):
            values = row.result.features[f"cka/{layer}"][row.finished_seeds]
            mean = values.mean(axis=0)[: done + 1, : done + 1]
            sides = (-0.5, done + 0.5, done + 0.5, -0.5)
            ax.imshow(mean, cmap, vmin=0, vmax=1, extent=sides)
            ax.grid(False)
            at = range(0, done + 1, math.ceil((done + 1) / 11))
            ax.set_xticks(at)
            ax.set_yticks(at)
            ax.set_title(f"{name_of(row)}: {plain(layer)}", size=8)
    figure.supxlabel("after tasks (0: untrained)", size=9)
    figure.supylabel("after tasks", size=9)
    figure.suptitle(
        "Similarity (debiased CKA) of the first task's features, mean over seeds",
        size=10,
    )
    colour_bar(figure, ScalarMappable(Normalize(0, 1), cmap), "CKA", (0, 0.5, 1))
    return figure


def probes(rows: Sequence[Row]) -> Figure:
    """Final accuracy on each task, of the network and of probes on its features."""
    figure, panels = panels_of(rows, 3.4, 2.6, sharey=True)
    shade = layer_colours(map(layers, rows))
    for ax, row in zip(panels, rows, strict=True):
        done, keep = row.result.tasks_done, row.finished_seeds
        task = np.arange(1, done + 1)
        band(
            ax,
            task,
            100 * row.result.matrix[keep][:, done - 1, :done],
            (0, 0, 0, 1),
            1.8,
            0.15,
            "network",
        )
        for layer in layers(row):
            own = shade[layer]
            values = 100 * row.result.features[f"probe_ridge/{layer}"][keep]
            band(ax, task, values[:, done, :done], own, 1.4, 0.2, f"{layer}, probe")
            learned = np.diagonal(values, -1, -2, -1)[:, :done].mean(axis=0)
            ax.plot(task, learned, color=own, lw=0.9, ls="--")
        ax.set_xlim(0.7, len(row.result.task_names) + 0.3)
        ax.legend(fontsize=7, handlelength=1.2)
    figure.supxlabel("task", size=9)
    figure.supylabel("accuracy %", size=9)
    figure.suptitle(
        "After the last task: accuracy, and that of a ridge probe on each layer\n"
        "band: lowest to highest seed; dashed: the probe right after the task",
        size=10,
    )
    return figure
