"""The figure of where two networks look: maps on images, and the maps' agreement."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import plain

MOMENTS = 3  # tasks after which a method's maps are shown, side by side


class Seen(NamedTuple):
    """A method's maps of the images in the figure."""

    label: str
    maps: NDArray[np.float64]  # [T, N, h, w] after each task
    chance: NDArray[np.float64]  # [T, N] probability of the true class
    accuracy: NDArray[np.float64]  # [T] on all test images of task 1


class Curve(NamedTuple):
    """An agreement after each task; NaN where it is not defined."""

    label: str
    colour: str
    dashed: bool
    values: NDArray[np.float64]  # [T]


def draw(
    images: NDArray[np.float64],
    window: int,
    methods: Sequence[Seen],
    curves: Sequence[Sequence[Curve]],
    titles: Sequence[str],
    name: str,
) -> Figure:
    """Images and maps above, curves of agreement below.

    Args:
      images: [N, H, W] grey, from 0 to 1.
      window: side of the covered square; neighbouring squares are half a side apart.
      methods: two.
      curves: the curves of each of the two panels below.
      titles: the title of each of these panels.
      name: of the config.
    """
    tasks = len(methods[0].maps)
    shown = np.unique(np.linspace(0, tasks - 1, MOMENTS).round().astype(int))
    count, across = len(images), 1 + len(methods) * len(shown)
    size = (8, 1.6 + 1.2 * count + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.35 * count, 2.6))
    grid = above.subplots(count, across, squeeze=False)
    for row, image in zip(grid, images, strict=True):
        _tile(row[0], image)
    grid[0, 0].set_title("image", size=8)
    for i, seen in enumerate(methods):
        for j, task in enumerate(shown):
            column = grid[:, 1 + i * len(shown) + j]
            right = f"{100 * seen.accuracy[task]:.0f} %"
            column[0].set_title(
                f"{plain(seen.label)} ({right})\nafter task {task + 1}", size=8
            )
            for k, ax in enumerate(column):
                _tile(ax, images[k], seen.maps[task, k], window)
                ax.set_xlabel(f"{100 * seen.chance[task, k]:.0f} %", size=7, labelpad=1)
    figure.suptitle(
        f"{plain(name)}: where the network looks in test images of task 1 (accuracy on "
        "them).\nRed: covering it lowers the probability of the true class, which is "
        "below each map; blue: it raises it",
        size=9,
    )
    for ax, own, title in zip(below.subplots(1, 2), curves, titles, strict=True):
        _agreement(ax, own, tasks)
        ax.set_title(title, size=8.5)
    return figure


def _tile(ax: Axes, image: NDArray, map_: NDArray | None = None, window: int = 1):
    ax.imshow(image, "gray", vmin=0, vmax=1)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    if map_ is None:
        return
    # Each value is drawn at the middle of its covered square.
    half, step = window / 2, max(1, window // 2)
    h, w = map_.shape
    first = half - 0.5 - step / 2
    extent = (first, first + w * step, first + h * step, first)
    top = float(np.abs(map_).max()) or 1.0
    ax.imshow(
        *(map_, "RdBu_r"),
        vmin=-top,
        vmax=top,
        alpha=0.6,
        extent=extent,
        interpolation="bilinear",
    )
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(image.shape[0] - 0.5, -0.5)


def _agreement(ax: Axes, curves: Sequence[Curve], tasks: int) -> None:
    after = np.arange(1, tasks + 1)
    for curve in curves:
        style = {"ls": "--" if curve.dashed else "-", "lw": 1.5, "ms": 3}
        ax.plot(
            after, curve.values, "o", color=curve.colour, label=curve.label, **style
        )
    ax.axhline(0, color="#999999", lw=0.8)
    ax.set_ylim(-0.15, 1.05)
    ax.set_xticks(after)
    ax.set_xlabel("after task")
    ax.set_ylabel("rank correlation")
    ax.legend(fontsize=7, loc="best", framealpha=0.8, frameon=True)
