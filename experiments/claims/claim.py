"""What a claim is: a statement, the runs it needs, what is measured, what decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from numpy.typing import NDArray

from ..runs.results import Result

Array = NDArray[np.float64]
SETTINGS = ("quick", "toy", "full")


class Stage(NamedTuple):
    """One step of choosing a run's settings on validation data.

    Attributes:
      fields: field -> values; every combination is tried, with each of the settings
        that the stage before has kept.
      tasks: trained on the first so many, and judged by their mean accuracy after the
        last of them.
      keep: how many of the best go on; 1 in the last stage.
    """

    fields: Mapping[str, Sequence[Any]]
    tasks: int
    keep: int = 1


class Run(NamedTuple):
    """One method on one stream, with all its seeds.

    Attributes:
      name: in the claim; runs of one config are one run, whatever their names.
      label: in tables and figures.
      config: its config, in which the chosen settings are put.
      choice: the stages by which its settings are chosen; none: as in the config.
      tried: the config that is tried with them, where it is not the run's own: a run on
        other tasks may take the settings of one on these.
      measure: further numbers from the run's folder and its kept weights, name -> [S];
        None: its accuracies are all.
    """

    name: str
    label: str
    config: ConfigDict
    choice: tuple[Stage, ...] = ()
    tried: ConfigDict | None = None
    measure: Callable[[Path], Mapping[str, Array]] | None = None


class Trial(NamedTuple):
    """One setting that was tried for a run.

    Attributes:
      fields: the settings.
      tasks: how many tasks it was trained on.
      accuracy: in [0, 1] on their validation data; NaN if it failed.
      seconds: it took.
      chosen: whether the run has these settings.
    """

    fields: Mapping[str, Any]
    tasks: int
    accuracy: float
    seconds: float
    chosen: bool


class Outcome(NamedTuple):
    """A run that is finished: S seeds."""

    run: Run
    key: str  # of its config: the name of its folder
    result: Result
    trials: tuple[Trial, ...]
    measured: Mapping[str, Array]  # by `Run.measure`


Outcomes = Mapping[str, Outcome]
"""Name of a run -> what came of it; runs that are not finished are not in it."""


class Estimate(NamedTuple):
    """An effect with its interval.

    Attributes:
      value: the effect.
      low: lower end of its 95 % interval.
      high: the upper end.
      per_seed: the effect of each seed [S]; empty where it is not a mean over seeds.
      failed: seeds without a number. While there is one, nothing is decided.
    """

    value: float
    low: float
    high: float
    per_seed: tuple[float, ...] = ()
    failed: int = 0


class Effect(NamedTuple):
    """A number that a claim is about, and where the claim says that it lies.

    Attributes:
      name: in words, as "BP** − HAT".
      needs: names of the runs that it is taken from.
      estimate: ``(outcomes) -> Estimate``.
      claimed: the claim says: between these two, ±∞ included. The finite ends are the
        margins; they stand here before the first run that decides.
      unit: of the effect.
      published: the author's value, where there is one.
    """

    name: str
    needs: tuple[str, ...]
    estimate: Callable[[Outcomes], Estimate]
    claimed: tuple[float, float]
    unit: str = "points"
    published: float | None = None


def above(margin: float) -> tuple[float, float]:
    """Where an effect lies that is claimed to be greater than a margin."""
    return margin, math.inf


def below(margin: float) -> tuple[float, float]:
    """Where an effect lies that is claimed to be less than a margin."""
    return -math.inf, margin


class Question(NamedTuple):
    """What has a verdict of its own: a stream, a pair of rows, a half of a claim.

    Attributes:
      name: in words.
      effects: those that decide it.
      rule: "every": it holds if every effect does, and does not hold if one does not;
        "some": the other way round.
    """

    name: str
    effects: tuple[Effect, ...]
    rule: str = "every"


class Claim(NamedTuple):
    """A claim, with all that shows or refutes it.

    Attributes:
      name: on the command line and of its folder.
      number: in the list of claims.
      statement: what is claimed.
      source: who made it and where.
      rule: how it is decided, in words: effects, margins.
      runs: ``(setting) -> its runs``, for each of `SETTINGS`, in the order in which
        they run.
      questions: each with a verdict; the claim holds if all do.
      figure: ``(outcomes, report) -> Figure``, of what is finished; the report is
        `experiments.claims.report.report`'s.
      shown: ``(outcomes) -> lines``, Markdown of what is shown and decides nothing.
      notes: what a reader has to know.
    """

    name: str
    number: int
    statement: str
    source: str
    rule: str
    runs: Callable[[str], tuple[Run, ...]]
    questions: tuple[Question, ...]
    figure: Callable[[Outcomes, Mapping[str, Any]], Figure]
    shown: Callable[[Outcomes], Sequence[str]] = lambda outcomes: ()
    notes: tuple[str, ...] = ()
