"""Runs what a claim needs, or takes up what has been run, one run after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcl import files

from ..runs.execute import execute, finished
from .choose import choose
from .claim import Array, Outcome, Outcomes, Run
from .keys import key_of

MEASURED = "measured.json"


def carry_out(run: Run, workdir: Path) -> Outcome:
    """Runs what is missing of a run: its trials, the run, what is measured of it.

    Args:
      run: what to run.
      workdir: holds ``trials`` and ``runs``, a folder for each config.

    Raises:
      As `experiments.runs.execute.carry_out`.
    """
    chosen = choose(run, workdir)
    assert chosen is not None
    key = key_of(chosen.config)
    folder = workdir / "runs" / key
    result = finished(chosen.config, folder) or execute(chosen.config, folder)
    return Outcome(run, key, result, chosen.trials, _measure(run, folder))


def found(runs: tuple[Run, ...], workdir: Path) -> Outcomes:
    """What is finished of some runs; nothing is run."""
    outcomes = {}
    for run in runs:
        chosen = choose(run, workdir, execute=False)
        if chosen is None:
            continue
        key = key_of(chosen.config)
        folder = workdir / "runs" / key
        result = finished(chosen.config, folder)
        if result is None or (run.measure and not (folder / MEASURED).exists()):
            continue
        measured = _measure(run, folder)
        outcomes[run.name] = Outcome(run, key, result, chosen.trials, measured)
    return outcomes


def _measure(run: Run, folder: Path) -> Mapping[str, Array]:
    """What a run's `measure` gives, kept beside its result."""
    if run.measure is None:
        return {}
    file = folder / MEASURED
    if not file.exists():
        values = {k: np.asarray(v, float) for k, v in run.measure(folder).items()}
        nulls = {
            k: [x if np.isfinite(x) else None for x in v.tolist()]
            for k, v in values.items()
        }
        files.write_whole(file, json.dumps(nulls, indent=1) + "\n")
    return {k: np.array(v, float) for k, v in json.loads(file.read_text()).items()}
