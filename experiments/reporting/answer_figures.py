"""Figures of answers: which class is taken for which."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .scores import Row
from .style import colour_bar, panels_of


def confusion(rows: Sequence[Row]) -> Figure:
    """Share of each output's examples by the output answered, after the last task."""
    figure, panels = panels_of(rows, 2.6, 2.5)
    cmap = matplotlib.colormaps["Blues"]
    for ax, row in zip(panels, rows, strict=True):
        values = row.result.features["confusion/outputs"][row.finished_seeds]
        over_time = values[:, : row.result.tasks_done + 1].mean(axis=0)
        last, k = 100 * over_time[-1], over_time.shape[-1]
        sides = (-0.5, k - 0.5, k - 0.5, -0.5)
        ax.imshow(last, cmap, vmin=0, vmax=100, extent=sides, aspect="auto")
        for edge in _edges(over_time):
            ax.axhline(edge, color="k", lw=0.5)
            ax.axvline(edge, color="k", lw=0.5)
        ax.grid(False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(True)
    figure.supxlabel("output answered", size=9)
    figure.supylabel("output of the example", size=9)
    figure.suptitle(
        "Which class is taken for which, after the last task\n"
        "mean over seeds; lines between the tasks that outputs came with",
        size=10,
    )
    scale = ScalarMappable(Normalize(0, 100), cmap)
    colour_bar(figure, scale, "share of an output's examples %", range(0, 101, 20))
    return figure


def _edges(over_time: NDArray) -> NDArray:
    """Where, between two outputs, the task they came with changes.

    Args:
      over_time: [T + 1, K, K] after 0, …, T tasks; NaN: no example of the output yet.
    """
    known = np.isfinite(over_time[1:]).all(-1)  # the start is of the first task
    came = np.where(known.any(0), known.argmax(0), len(known))
    return np.flatnonzero(np.diff(came)) + 0.5
