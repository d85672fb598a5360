"""What a checkout has recorded of claims: runs, their measurements, their trials.

A new workdir, as in a fresh clone, can go on from there instead of running it again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..runs.plain_json import read_json
from .claim import Outcome, Outcomes

RECORDED = Path(__file__).parent.parent / "results" / "claims"
"""A folder of the checkout; an installed package lacks it and records nothing."""
RUNS = "runs"

Scores = Mapping[str, tuple[float, float]]
"""Key of a trial's config -> accuracy on validation data (NaN: failed), seconds."""


def scores(recorded: Path | None) -> Scores:
    """The trials on all recorded pages; none without a folder."""
    found = {}
    for page in sorted(recorded.glob("*/claim.json")) if recorded else ():
        for run in read_json(page)["runs"]:
            for trial in run["trials"]:
                accuracy = trial["accuracy"]
                score = math.nan if accuracy is None else accuracy
                key = trial["key"]
                # On older pages trials are rounded: the longer number is the exact one.
                if key not in found or len(repr(score)) > len(repr(found[key][0])):
                    found[key] = score, trial["seconds"]
    return found


def lacking(own: Path, outcomes: Outcomes) -> list[str]:
    """Labels of the runs on a claim's recorded page that are not among `outcomes`.

    A page is not replaced by one with fewer runs.
    """
    page = own / "claim.json"
    if not page.exists():
        return []
    known = {outcome.key for outcome in outcomes.values()}
    return [r["label"] for r in read_json(page)["runs"] if r["key"] not in known]


def keep(recorded: Path, outcome: Outcome) -> None:
    """Records a run's config, result and measurements."""
    kept = recorded / RUNS / outcome.key
    if outcome.folder == kept:
        return
    kept.mkdir(parents=True, exist_ok=True)
    measured = outcome.folder.glob("measured_*.json")
    own = (outcome.folder / name for name in ("config.json", "result.json"))
    for file in (*own, *measured):
        shutil.copy(file, kept / file.name)
