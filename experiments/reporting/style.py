"""What the figures share: colours, panels, bands, and how they are saved."""

import io
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from jaxcl import files
from jaxcl.strategies import METHODS

from .scores import Row
from .tables import UNFINISHED

# Colours for methods from other packages; the table's own are in `METHODS`.
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


def colours(rows: Iterable[Row]) -> dict[str, str]:
    """A colour per row: the table's, or one of `SPARE` if it is of another package.

    The name alone selects the spare colour, whatever else is drawn. If two names select
    the same colour, the later name in the alphabet takes the next free one.
    """
    found = {row.result.row: METHODS.get(row.result.row) for row in rows}
    colour = {row: m.colour for row, m in found.items() if m and m.colour}
    for row in sorted(found.keys() - colour.keys()):
        start = zlib.crc32(row.encode()) % len(SPARE)
        order = SPARE[start:] + SPARE[:start]
        colour[row] = next((c for c in order if c not in colour.values()), order[0])
    return colour


def panels_of(
    rows: Sequence[Row], width: float, height: float, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A grid of panels, each with its method's name and colour; unused ones removed."""
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
        ax.set_title(name_of(row), pad=9)
        ax.set_xticks(ticks(len(row.result.task_names)))
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


def save(figure: Figure, file: Path) -> None:
    """Writes a PNG of 256 colours, at a third of the full file size.

    They are the colours that something is drawn in, however small it is, and the most
    frequent others: only shades of antialiased edges and of colour maps shift.
    """
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    codes = pixels.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1])
    shades, where, counts = np.unique(codes, return_inverse=True, return_counts=True)
    every = shades[:, None] >> np.array([16, 8, 0]) & 255
    drawn = np.isin(shades, _drawn(figure) @ np.array([1 << 16, 1 << 8, 1]))
    kept = every[np.lexsort((-counts, ~drawn))[:256]]
    nearest = np.array(KDTree(kept).query(every)[1], np.uint8)
    image = Image.fromarray(nearest[where].reshape(pixels.shape[:2]), "P")
    image.putpalette(kept.astype(np.uint8).tobytes())
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True, dpi=(DPI, DPI))
    files.write_whole(file, encoded.getvalue())


def _drawn(figure: Figure) -> NDArray[np.int64]:
    """The colours of lines, faces and edges, from 0 to 255, [N, 3]."""
    found = [(255, 255, 255)]
    for artist in figure.findobj():
        for name in ("get_color", "get_facecolor", "get_edgecolor"):
            colours = to_rgba_array(getattr(artist, name, lambda: [])())
            found += [tuple(np.round(255 * c[:3]).astype(int)) for c in colours]
    return np.array(found)


def save_svg(figure: Figure, file: Path) -> None:
    """Writes an SVG with the same bytes each time; its text stays text."""
    with matplotlib.rc_context({"svg.hashsalt": "jaxcl", "svg.fonttype": "none"}):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    files.write_whole(file, drawn.getvalue())


def forget(figure: Path) -> None:
    """Removes the figure of an earlier report; `figure` has no suffix."""
    for suffix in (".png", ".svg"):
        figure.with_name(figure.name + suffix).unlink(missing_ok=True)


def entitle(figure: Figure, rows: Sequence[Row]) -> None:
    """Puts the benchmark above a figure's title."""
    names = dict.fromkeys(
        f"{plain(r.config_name)}, {r.scenario}-incremental"
        for r in (x.result for x in rows)
    )
    above, title = "; ".join(names), figure.get_suptitle()
    if title:
        figure.suptitle(f"{above}\n{title}", size=9)
    else:
        figure.suptitle(above, size=10)


def layer_colours(named: Iterable[Iterable[str]]) -> dict[str, NDArray]:
    """A colour per layer, the same in all panels.

    Args:
      named: the layers of each panel.
    """
    names = list(dict.fromkeys(layer for panel in named for layer in panel))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
    return dict(zip(names, shades, strict=True))


def ticks(count: int) -> range:
    """At most ten of the tasks 1..count."""
    return range(1, count + 1, math.ceil(count / 10))


def colour_bar(
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


def band(
    ax: Axes,
    x: NDArray,
    values: NDArray,
    colour: Sequence[float],
    width: float,
    alpha: float,
    label: str | None = None,
) -> None:
    """A mean line over seeds [S, N] with its lowest-to-highest band."""
    label = label and plain(label)
    low, high = values.min(axis=0), values.max(axis=0)
    ax.fill_between(x, low, high, color=colour, alpha=alpha, lw=0)
    ax.plot(x, values.mean(axis=0), color=colour, lw=width, label=label)
    ax.plot(x[:1], values.mean(axis=0)[:1], color=colour, marker="o", ms=2.8)


def plain(text: str) -> str:
    """A text as a figure may show it.

    "$" would begin a formula, and no font has a picture of a control character.
    """
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return shown.replace("$", r"\$")


def name_of(row: Row) -> str:
    """The method's name, marked if it is unfinished or has failed seeds."""
    name = plain(row.label)
    if row.unfinished:
        done, t = row.result.tasks_done, len(row.result.task_names)
        name += f" {UNFINISHED} {done}/{t} tasks"
    if row.failed:
        name += f" ({len(row.failed)}/{len(row.result.seeds)} failed)"
    return name
