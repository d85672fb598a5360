"""Writes a picture as PNG and SVG, and its numbers and their origin as JSON."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from jaxcl import files

from .style import DPI, STYLE

# Text stays text, and the same picture always gives the same file.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "jaxcl"}


def write(
    workdir: Path, name: str, draw: Callable[[], Figure], facts: Mapping[str, Any]
) -> None:
    """Writes NAME.png, NAME.svg and NAME.json into a folder, each whole or not at all.

    Args:
      workdir: made if absent.
      name: of the files.
      draw: makes the figure, in this project's style.
      facts: the numbers and their origin; None in place of NaN, which JSON lacks.
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
