"""Chooses a run's settings on validation data, with a seed that decides nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxcl import metrics

from ..runs.execute import finished
from ..runs.folders import Part
from ..runs.grid import prepare_parts, run_points
from ..runs.results import FILE_NAME, OK, Result, load
from .claim import Run, Stage, Trial
from .keys import key_of
from .recorded import Scores, scores

CHOOSING_SEED = 199
"""No other run uses it: no recorded result, and no run that decides a claim."""


class Chosen(NamedTuple):
    """A run's config with the best settings, and all settings that were tried."""

    config: ConfigDict
    trials: tuple[Trial, ...]


def choose(
    run: Run, workdir: Path, recorded: Path | None = None, *, execute: bool = True
) -> Chosen | None:
    """Tries a run's settings, or loads earlier trials, and keeps the best.

    Args:
      run: its `choice` says what is tried.
      workdir: each trial has a folder in its ``trials``; runs share equal trials.
      recorded: trials that a checkout has recorded here are not run; what `workdir`
        has itself comes first.
      execute: whether to run missing trials.

    Returns:
      The choice; None if a trial is missing and `execute` is False.

    Raises:
      As `experiments.runs.execute.carry_out`.
    """
    kept: list[dict[str, Any]] = [{}]
    trials: list[Trial] = []
    known = scores(recorded) if run.choice else {}
    for stage in run.choice:
        tried = [before | fields for before in kept for fields in _product(stage)]
        configs = [trial_config(run, fields, stage) for fields in tried]
        keys = [key_of(config) for config in configs]
        new = [
            config
            for config, key in zip(configs, keys, strict=True)
            if key not in known or finished(config, workdir / "trials" / key)
        ]
        results = _results(new, workdir, execute)
        if results is None:
            return None
        known |= {
            key_of(config): (_score(result), result.wall_s)
            for config, result in zip(new, results, strict=True)
        }
        found = [known[key] for key in keys]
        # Among equal scores the first one tried wins; failed trials come last.
        merit = [-math.inf if math.isnan(score) else score for score, _ in found]
        order = sorted(range(len(tried)), key=lambda i, merit=merit: -merit[i])
        kept = [tried[i] for i in order[: stage.keep]]
        last = stage is run.choice[-1]
        trials += [
            Trial(fields, stage.tasks, *score, last and fields == kept[0], key)
            for fields, score, key in zip(tried, found, keys, strict=True)
        ]
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(kept[0])
    return Chosen(config, tuple(trials))


def trial_config(run: Run, fields: Mapping[str, Any], stage: Stage) -> ConfigDict:
    """The config of one trial: the run's, on validation data of its first tasks."""
    config = (run.tried or run.config).copy_and_resolve_references()
    config.update_from_flattened_dict(dict(fields))
    config.update(measure="valid", seeds=(CHOOSING_SEED,))
    config.data.tasks = (0, stage.tasks)
    config.keep_weights = "none"
    return config


def finished_trials(workdir: Path, known: Container[str] = ()) -> Scores:
    """What has been tried in a workdir, for whichever run, without what is `known`."""
    results = {
        file.parent.name: load(file.parent)
        for file in workdir.glob(f"trials/*/{FILE_NAME}")
        if file.parent.name not in known
    }
    return {
        key: (_score(r), r.wall_s)
        for key, r in results.items()
        if r.tasks_done == len(r.task_names)
    }


def _product(stage: Stage) -> list[dict[str, Any]]:
    return [
        dict(zip(stage.fields, values, strict=True))
        for values in itertools.product(*stage.fields.values())
    ]


def _results(
    configs: list[ConfigDict], workdir: Path, execute: bool
) -> list[Result] | None:
    if not configs:
        return []
    parts = [Part(c, workdir / "trials" / key_of(c)) for c in configs]
    if execute:
        return run_points(prepare_parts(parts))
    found = [finished(part.config, part.workdir) for part in parts]
    return None if None in found else [result for result in found if result]


def _score(result: Result) -> float:
    """ACC on the validation data; NaN if the seed failed."""
    if any(status != OK for status in result.status):
        return math.nan
    return float(np.mean(metrics.average_accuracy(result.matrix)))
