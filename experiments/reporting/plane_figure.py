"""The figure of a plane in weight space: two tasks' accuracy, and methods' paths."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import plain

_SHADES = ("Blues", "Oranges")
_LEVELS = 9
NEAR = 2.0  # the sweet spot reaches so many points below the best mean


class Walk(NamedTuple):
    """A method's path through task 2, in the plane."""

    label: str
    colour: str
    xy: NDArray[np.float64]  # [N, 2], the first after task 1, the last after task 2
    outside: NDArray[np.float64]  # [N] shares
    accuracy: NDArray[np.float64]  # [2], of the network itself at the end


class Surface(NamedTuple):
    """Accuracy over the plane."""

    x: NDArray[np.float64]  # [X]
    y: NDArray[np.float64]  # [Y]
    accuracy: NDArray[np.float64]  # [2, Y, X] of tasks 1 and 2
    corners: NDArray[np.float64]  # [3, 2] after task 1, after task 2, joint
    names: tuple[str, str]  # of the row whose tasks are corners, and of the joint row


def best(surface: Surface) -> tuple[tuple[float, float], NDArray[np.float64]]:
    """The point with the highest mean accuracy of both tasks; both accuracies there."""
    mean = surface.accuracy.mean(0)
    y, x = np.unravel_index(int(mean.argmax()), mean.shape)
    return (surface.x[x], surface.y[y]), surface.accuracy[:, y, x]


def draw(surface: Surface, walks: Sequence[Walk], name: str) -> Figure:
    """One panel per task, both with the same paths, corners and best point."""
    spanned = np.ptp(surface.y) / np.ptp(surface.x)
    height = 1.9 + 3.3 * float(np.clip(spanned, 0.3, 1.6)) + 0.17 * len(walks)
    figure = Figure(figsize=(8, height), layout="constrained")
    for task, ax in enumerate(figure.subplots(1, 2, sharey=True)):
        _contours(ax, surface, task)
        _paths(ax, surface, walks)
        ax.set_title(f"accuracy on task {task + 1}, %")
        ax.set_xlabel("distance in weight space")
    spot, (one, two) = best(surface)
    handles = figure.axes[0].get_legend_handles_labels()[0]
    labels = [
        f"{plain(w.label)}: {100 * w.accuracy[0]:.1f} / {100 * w.accuracy[1]:.1f} %, "
        f"{100 * w.outside[-1]:.0f} % outside"
        for w in walks
    ]
    labels.append(f"best point of the plane: {100 * one:.1f} / {100 * two:.1f} %")
    figure.legend(handles, labels, fontsize=8, ncols=2, loc="outside lower center")
    figure.suptitle(
        f"{plain(name)}: the plane through the weights after task 1, after task 2 and "
        "after\njoint training. Dots: epochs of task 2; dashed: within "
        f"{NEAR:.0f} points of the best mean of both tasks",
        size=9,
    )
    return figure


def _contours(ax: Axes, surface: Surface, task: int) -> None:
    values = 100 * surface.accuracy[task]
    top = max(np.ceil(values.max()), np.floor(values.min()) + 1)
    levels = np.linspace(np.floor(values.min()), top, _LEVELS)
    shades = matplotlib.colormaps[_SHADES[task]](np.linspace(0.05, 0.75, _LEVELS - 1))
    ax.contourf(surface.x, surface.y, values, levels, colors=shades)
    lines = ax.contour(
        surface.x, surface.y, values, levels, colors="white", linewidths=0.5
    )
    ax.clabel(lines, fmt="%.0f", fontsize=6.5, colors="#333333")
    mean = 100 * surface.accuracy.mean(0)
    if mean.min() < mean.max() - NEAR:
        ax.contour(
            *(surface.x, surface.y, mean, [mean.max() - NEAR]),
            colors="black",
            linestyles="--",
            linewidths=1,
        )
    ax.set_aspect("equal")
    ax.grid(False)


def _paths(ax: Axes, surface: Surface, walks: Sequence[Walk]) -> None:
    for walk in walks:
        ax.plot(
            *walk.xy.T,
            *("o-",),
            color=walk.colour,
            ms=2.5,
            lw=1.5,
            label=walk.label,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
        )
        ax.plot(*walk.xy[-1], "o", color=walk.colour, mec="white", ms=7, zorder=4)
    ax.plot(*best(surface)[0], "k*", ms=12, mec="white", ls="", label="best", zorder=5)
    first, joint = surface.names
    names = ("after task 1", f"{first}, task 2", joint)
    for (x, y), name in zip(surface.corners, names, strict=True):
        ax.plot(x, y, "k+", ms=8, zorder=6)
        ax.annotate(
            *(name, (x, y)),
            xytext=(4, -11),
            textcoords="offset points",
            size=8,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )
