"""Claim 11's figure: source against target during training; the plane of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .claim import Outcome, Outcomes
from .figures import colour_of, not_yet_run
from .transfer_measures import SHARES
from .transfer_runs import ROWS, WITHOUT_SOURCE

CORNERS = ("pretrained", "fine-tuned", "joint")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw(outcomes: Outcomes, bounds: tuple[float, float] | None) -> Figure:
    """A curve per row, the mean over seeds; accuracy over the plane for the first seed.

    Args:
      outcomes: what is finished.
      bounds: the sweet spot's lower bounds in per cent, on target and source.
    """
    figure = Figure(figsize=(8.6, 7.0), layout="constrained")
    axes = figure.subplot_mosaic([["way", "way"], ["source", "target"]])
    _ways(axes["way"], outcomes)
    if bounds is not None:
        x, y = bounds
        axes["way"].axvline(x, color="k", lw=0.8, ls=":")
        axes["way"].axhline(y, color="k", lw=0.8, ls=":")
    joint = outcomes.get("joint")
    for i, task in enumerate(("source", "target")):
        if joint is not None:
            _plane(axes[task], joint, i)
            axes[task].set_xlabel("distance in weight space")
        else:
            not_yet_run(axes[task])
        axes[task].set_title(f"accuracy on the {task} over the plane, %", size=9)
    return figure


def _ways(ax: Any, outcomes: Outcomes) -> None:
    rows = [n for n in ROWS if n not in WITHOUT_SOURCE and n in outcomes]
    for name, mark in zip(rows, MARKS, strict=False):
        outcome = outcomes[name]
        x, y = (_mean(outcome, key) for key in ("target", "source"))
        style = dict(color=colour_of(outcome), marker=mark, ms=4, lw=1.2)
        ax.plot(x, y, label=ROWS[name].label, markevery=[-1], **style)
        ax.plot(x[:-1], y[:-1], ".", ms=3, color=style["color"])
    if "fine_tune" in outcomes:
        x, y = (
            _mean(outcomes["fine_tune"], f"mixed_{t}") for t in ("target", "source")
        )
        text = f"pretrained to fine-tuned, {', '.join(f'{s:g}' for s in SHARES)}"
        ax.plot(x, y, "k+--", ms=6, lw=0.8, label=text)
    ax.set_xlabel(
        "accuracy on the target %, each point an epoch; mark: the end; "
        "dotted: the sweet spot's bounds"
    )
    ax.set_ylabel("accuracy on the source %")
    if rows:
        ax.legend(fontsize=7, ncols=2)


def _mean(outcome: Outcome, name: str) -> np.ndarray:
    return np.nanmean(outcome.measured[name], axis=0)


def _plane(ax: Any, joint: Outcome, task: int) -> None:
    m = joint.measured
    shown = ax.contourf(m["plane_x"], m["plane_y"], m["plane"][task], 9, cmap="Blues")
    ax.figure.colorbar(shown, ax=ax, shrink=0.7)
    for (x, y), name in zip(m["corners"], CORNERS, strict=True):
        ax.plot(x, y, "k+", ms=8)
        ax.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", size=8)
    ax.set_aspect("equal")
    ax.grid(False)
