"""Runs what a claim needs, or loads what has been run, one run after another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxcl import files

from .. import config as configs
from ..runs.execute import execute, finished
from ..runs.plain_json import read_json
from ..runs.results import CONFIG_NAME
from .choose import choose
from .claim import Array, Outcome, Outcomes, Run
from .keys import key_of


def carry_out(run: Run, workdir: Path) -> Outcome:
    """Does what is missing for a run: its trials, the run itself, its measurements.

    Args:
      run: what to run.
      workdir: holds ``trials`` and ``runs``, with a folder for each config.

    Raises:
      As `experiments.runs.execute.carry_out`.
    """
    chosen = choose(run, workdir)
    assert chosen is not None
    key = key_of(chosen.config)
    folder = workdir / "runs" / key
    config = _as_begun(chosen.config, folder)
    result = finished(config, folder) or execute(config, folder)
    return Outcome(run, key, result, chosen.trials, _measure(run, folder))


def found(runs: tuple[Run, ...], workdir: Path) -> Outcomes:
    """Name -> outcome, for those of the runs that are finished; runs nothing."""
    outcomes = {}
    for run in runs:
        chosen = choose(run, workdir, execute=False)
        if chosen is None:
            continue
        key = key_of(chosen.config)
        folder = workdir / "runs" / key
        result = finished(_as_begun(chosen.config, folder), folder)
        file = measured_file(run, folder)
        if result is None or (file is not None and not file.exists()):
            continue
        measured = _measure(run, folder)
        outcomes[run.name] = Outcome(run, key, result, chosen.trials, measured)
    return outcomes


def _as_begun(config: ConfigDict, folder: Path) -> ConfigDict:
    """A run's config, with the `keep_weights` of the run that began in its folder.

    Two claims may share a run although only one needs its weights; the key is the same.
    """
    file = folder / CONFIG_NAME
    if file.exists():
        config = config.copy_and_resolve_references()
        begun = configs.from_json(read_json(file))
        config.keep_weights = begun.keep_weights
    return config


def measured_file(run: Run, folder: Path) -> Path | None:
    """The file for the numbers of a run's `measure`; None if it has no `measure`."""
    if run.measure is None:
        return None
    return folder / f"measured_{run.measure.__name__}.json"


def _measure(run: Run, folder: Path) -> Mapping[str, Array]:
    """The numbers of a run's `measure`, kept beside its result."""
    file = measured_file(run, folder)
    if run.measure is None or file is None:
        return {}
    if not file.exists():
        values = {k: np.asarray(v, float) for k, v in run.measure(folder).items()}
        nulls = {
            k: np.where(np.isfinite(v), v.astype(object), None).tolist()
            for k, v in values.items()
        }
        files.write_whole(file, json.dumps(nulls, indent=1) + "\n")
    return {k: np.array(v, float) for k, v in json.loads(file.read_text()).items()}
