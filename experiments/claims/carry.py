"""Runs what a claim needs, or finds what has been run, one run after another."""

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
from ..runs.results import CONFIG_NAME, Result
from .choose import Chosen, choose
from .claim import OF_RUN, Array, Outcome, Outcomes, Run
from .decide import accuracy
from .keys import key_of
from .recorded import RUNS


def carry_out(run: Run, workdir: Path, recorded: Path | None = None) -> Outcome:
    """Does what is missing for a run: its trials, the run itself, its measurements.

    Args:
      run: what to run.
      workdir: holds ``trials`` and ``runs``, with a folder for each config.
      recorded: where a checkout has recorded such runs; what is there is not missing.

    Raises:
      As `experiments.runs.execute.carry_out`.
    """
    chosen = choose(run, workdir, recorded)
    assert chosen is not None
    key = key_of(chosen.config)
    if outcome := _found(run, chosen, workdir, recorded):
        return outcome
    folder = workdir / RUNS / key
    config = _as_begun(chosen.config, folder)
    result = finished(config, folder) or execute(config, folder)
    return _outcome(run, chosen, folder, result, recorded)


def found(
    runs: tuple[Run, ...], workdir: Path, recorded: Path | None = None
) -> Outcomes:
    """Name -> outcome, for those of the runs that are finished; runs nothing."""
    outcomes = {}
    for run in runs:
        chosen = choose(run, workdir, recorded, execute=False)
        outcome = chosen and _found(run, chosen, workdir, recorded)
        if outcome:
            outcomes[run.name] = outcome
    return outcomes


def _found(
    run: Run, chosen: Chosen, workdir: Path, recorded: Path | None
) -> Outcome | None:
    """A run that is finished and measured, in the workdir or else as recorded."""
    key = key_of(chosen.config)
    for place in filter(None, (workdir, recorded)):
        folder = place / RUNS / key
        result = finished(_as_begun(chosen.config, folder), folder)
        file = measured_file(run, folder)
        if result is None or (file is not None and not file.exists()):
            continue
        return _outcome(run, chosen, folder, result, recorded)
    return None


def _outcome(
    run: Run, chosen: Chosen, folder: Path, result: Result, recorded: Path | None
) -> Outcome:
    """The outcome of the finished run in a folder, measured.

    A run that is recorded without the weights that a measurement needs is run a second
    time. The result stays that of the first: a second run replaces no recorded one.
    """
    key, measured = key_of(chosen.config), _measure(run, folder, result)
    there = recorded / RUNS / key if recorded else folder
    first = finished(_as_begun(chosen.config, there), there)
    again = there != folder and first is not None
    return Outcome(*(run, key, folder, first or result, chosen.trials, measured, again))


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


def _measure(run: Run, folder: Path, result: Result) -> Mapping[str, Array]:
    """The numbers of a run's `measure`, kept beside its result, and that run's ACC."""
    file = measured_file(run, folder)
    if run.measure is None or file is None:
        return {}
    if not file.exists():
        values = {OF_RUN: accuracy(result), **run.measure(folder)}
        values = {k: np.asarray(v, float) for k, v in values.items()}
        nulls = {
            k: np.where(np.isfinite(v), v.astype(object), None).tolist()
            for k, v in values.items()
        }
        files.write_whole(file, json.dumps(nulls, indent=1) + "\n")
    return {k: np.array(v, float) for k, v in json.loads(file.read_text()).items()}
