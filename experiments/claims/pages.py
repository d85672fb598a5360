"""Writes a claim's page, figure and data; records them together with their runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..reporting import results_page
from ..reporting.claim_page import markdown
from ..reporting.style import STYLE, save
from .choose import finished_trials
from .claim import Claim, Outcomes
from .recorded import RECORDED, keep, keep_trials, lacking, on_pages
from .report import report
from .report import write as write_report


def write(claim: Claim, setting: str, outcomes: Outcomes, workdir: Path) -> Path:
    """Writes a claim's current state into ``WORKDIR/claims/NAME``.

    The files are `claim.json`, `README.md` and the figure as PNG and SVG.

    Returns:
      The folder.
    """
    folder = workdir / "claims" / claim.name
    found = report(claim, setting, outcomes)
    write_report(folder, found)
    with matplotlib.rc_context(STYLE):
        save_both(claim.figure(outcomes, found), folder / f"{claim.name}.png")
    (folder / "README.md").write_text(markdown(found, [f"{claim.name}.png"]))
    return folder


def save_both(figure: Figure, png: Path) -> None:
    """Writes a figure as PNG and, beside it, as SVG, with the same bytes each time."""
    with matplotlib.rc_context({"svg.hashsalt": png.stem, "svg.fonttype": "none"}):
        figure.savefig(png.with_suffix(".svg"), metadata={"Date": None})
    save(figure, png)


def record(
    claim: Claim, setting: str, outcomes: Outcomes, workdir: Path
) -> Sequence[str]:
    """Copies a claim's page and its runs' results into `RECORDED`.

    Then rewrites the page of all results. Does nothing at the setting ``quick`` and
    outside a checkout. A claim at ``full`` has a folder of its own beside the one at
    ``toy``.

    Returns:
      Labels of the recorded runs that `outcomes` lacks. If there are any, nothing is
      written: a recorded page is never replaced by a lesser one.
    """
    if setting == "quick" or not RECORDED.parent.is_dir():
        return ()
    name = claim.name if setting == "toy" else f"{claim.name}_{setting}"
    own = RECORDED / name
    if lost := lacking(own, outcomes):
        record_trials(setting, workdir)
        return lost
    own.mkdir(parents=True, exist_ok=True)
    for file in (workdir / "claims" / claim.name).iterdir():
        if file.suffix != ".tmp":
            shutil.copy(file, own / file.name)
    for outcome in outcomes.values():
        keep(RECORDED, outcome)
    page = results_page.page(RECORDED.parent)
    (RECORDED.parent / "README.md").write_text(page, encoding="utf-8")
    record_trials(setting, workdir)
    return ()


def record_trials(setting: str, workdir: Path) -> None:
    """Records the trials of runs that are not finished, where `record` records."""
    if setting != "quick" and RECORDED.is_dir():
        known = on_pages(RECORDED)
        keep_trials(RECORDED, finished_trials(workdir, known))
