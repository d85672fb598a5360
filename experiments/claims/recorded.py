"""What a checkout has recorded of claims: runs, their measurements, their trials.

A new workdir, as in a fresh clone, can go on from there instead of running it again.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from jaxcl import files

from ..runs.plain_json import read_json
from .claim import Outcome, Outcomes

RECORDED = Path(__file__).parent.parent / "results" / "claims"
"""A folder of the checkout; an installed package lacks it and records nothing."""
RUNS = "runs"
TRIALS = "trials.json"
"""Trials of runs that are on no page yet, key -> accuracy and seconds."""

Scores = Mapping[str, tuple[float, float]]
"""Key of a trial's config -> accuracy on validation data (NaN: failed), seconds."""


def scores(recorded: Path | None) -> Scores:
    """The trials that are recorded, on pages or before; none without a folder."""
    if recorded is None:
        return {}
    found = dict(on_pages(recorded))
    for key, (accuracy, seconds) in _before_their_runs(recorded).items():
        found.setdefault(key, (_number(accuracy), seconds))
    return found


def keep_trials(recorded: Path, trials: Scores) -> None:
    """Records trials of runs that are not finished, so that nobody tries them again.

    They leave the file when their run is on a page.
    """
    known = on_pages(recorded)
    kept = _before_their_runs(recorded) | {
        key: [None if math.isnan(accuracy) else accuracy, seconds]
        for key, (accuracy, seconds) in trials.items()
    }
    kept = {key: kept[key] for key in sorted(kept) if key not in known}
    file = recorded / TRIALS
    if kept:
        files.write_whole(file, json.dumps(kept, indent=1) + "\n")
    else:
        file.unlink(missing_ok=True)


def on_pages(recorded: Path) -> Scores:
    """The trials on all recorded pages."""
    found = {}
    for page in sorted(recorded.glob("*/claim.json")):
        for run in read_json(page)["runs"]:
            for trial in run["trials"]:
                key, score = trial["key"], _number(trial["accuracy"])
                # On older pages trials are rounded: the longer number is the exact one.
                if key not in found or len(repr(score)) > len(repr(found[key][0])):
                    found[key] = score, trial["seconds"]
    return found


def _before_their_runs(recorded: Path) -> dict[str, list[float | None]]:
    file = recorded / TRIALS
    return read_json(file) if file.exists() else {}


def _number(accuracy: float | None) -> float:
    return math.nan if accuracy is None else accuracy


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
    """Records a run's config, result and measurements; of a second run, these alone."""
    kept = recorded / RUNS / outcome.key
    if outcome.folder == kept:
        return
    kept.mkdir(parents=True, exist_ok=True)
    measured = outcome.folder.glob("measured_*.json")
    names = () if outcome.again else ("config.json", "result.json")
    own = (outcome.folder / name for name in names)
    for file in (*own, *measured):
        shutil.copy(file, kept / file.name)
