"""A picture as PNG and SVG, and beside it in JSON what it shows and where from."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from jaxcl import files

from .style import DPI, STYLE

# Text stays text, and the same picture is the same file.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "jaxcl"}


def write(
    workdir: Path, name: str, draw: Callable[[], Figure], facts: Mapping[str, Any]
) -> None:
    """Writes NAME.png, NAME.svg and NAME.json into a folder, each whole or not at all.

    Args:
      workdir: made if absent.
      name: of the files.
      draw: makes the figure, in this project's style.
      facts: the numbers and their origin; JSON has no NaN, None stands for it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE | _SVG):
        figure = draw()
        for kind in ("png", "svg"):
            data = io.BytesIO()
            dated = {"metadata": {"Date": None}} if kind == "svg" else {}
            figure.savefig(data, format=kind, dpi=DPI, **dated)
            files.write_whole(workdir / f"{name}.{kind}", data.getvalue())
    text = json.dumps(facts, indent=1, allow_nan=False)
    files.write_whole(workdir / f"{name}.json", text + "\n")
