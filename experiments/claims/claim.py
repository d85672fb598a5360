"""The parts of a claim: statement, runs, measurements, and the rules that decide it."""

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
      fields: field -> values; every combination is tried, together with each of the
        settings that the previous stage has kept.
      tasks: a trial trains on this many first tasks; it is judged by their mean
        accuracy after the last of them.
      keep: how many of the best settings go to the next stage; 1 in the last stage.
    """

    fields: Mapping[str, Sequence[Any]]
    tasks: int
    keep: int = 1


class Run(NamedTuple):
    """One method on one stream, with all its seeds.

    Attributes:
      name: in the claim; runs with the same config are one run, whatever their names.
      label: in tables and figures.
      config: its config, into which the chosen settings are put.
      choice: the stages that choose its settings; none: the settings of the config.
      tried: the config of the trials, if it is not the run's own: a run may take the
        settings of a run on other tasks.
      measure: further numbers from the run's folder and its kept weights, name -> [S];
        None: only accuracies are needed.
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
      seconds: how long it took.
      chosen: whether the run has these settings.
      key: of its config.
    """

    fields: Mapping[str, Any]
    tasks: int
    accuracy: float
    seconds: float
    chosen: bool
    key: str


class Outcome(NamedTuple):
    """A run that is finished: S seeds."""

    run: Run
    key: str  # of its config: the name of its folder
    folder: Path  # in a workdir, or where a checkout records it
    result: Result
    trials: tuple[Trial, ...]
    measured: Mapping[str, Array]  # the numbers of `Run.measure`, and `OF_RUN`
    again: bool = False  # folder holds a second run; the result is the recorded first


OF_RUN = "acc"
"""Among a run's measured numbers: ACC in per cent of the run that was measured [S]."""

Outcomes = Mapping[str, Outcome]
"""Name of a run -> its outcome; contains finished runs only."""


class Estimate(NamedTuple):
    """An effect with its interval.

    Attributes:
      value: the effect.
      low: lower end of its 95 % interval.
      high: upper end of its 95 % interval.
      per_seed: the effect of each seed [S]; empty if it is not a mean over seeds.
      failed: number of seeds without a value. If it is not 0, nothing is decided.
    """

    value: float
    low: float
    high: float
    per_seed: tuple[float, ...] = ()
    failed: int = 0


class Effect(NamedTuple):
    """A number that a claim is about, and the range that the claim gives for it.

    Attributes:
      name: in words, as "BP** − HAT".
      needs: names of the runs that it is computed from.
      estimate: ``(outcomes) -> Estimate``.
      claimed: the claim says that the effect lies between these two ends; they may be
        ±∞. The finite ends are the margins; they are set before the first deciding run.
      unit: of the effect.
      published: the author's value, if there is one.
    """

    name: str
    needs: tuple[str, ...]
    estimate: Callable[[Outcomes], Estimate]
    claimed: tuple[float, float]
    unit: str = "points"
    published: float | None = None


def above(margin: float) -> tuple[float, float]:
    """The claimed range of an effect that must be greater than a margin."""
    return margin, math.inf


def below(margin: float) -> tuple[float, float]:
    """The claimed range of an effect that must be less than a margin."""
    return -math.inf, margin


class Question(NamedTuple):
    """A part of a claim with its own verdict: a stream, a pair of rows, half a claim.

    Attributes:
      name: in words.
      effects: the effects that decide it.
      rule: "every": it holds if every effect holds, and does not hold if one effect
        does not hold. "some": it holds if one effect holds, and does not hold if every
        effect does not hold.
    """

    name: str
    effects: tuple[Effect, ...]
    rule: str = "every"


class Claim(NamedTuple):
    """A claim, with everything that shows or refutes it.

    Attributes:
      name: on the command line, and of its folder.
      number: in the list of claims.
      statement: what is claimed.
      source: who claims it, and where.
      rule: how it is decided, in words: effects, margins.
      runs: ``(setting) -> its runs``, for each of `SETTINGS`, in the order in which
        they run.
      questions: each with a verdict; the claim holds if all do.
      figure: ``(outcomes, report) -> Figure``, of what is finished; the report is from
        `experiments.claims.report.report`.
      shown: ``(outcomes) -> lines`` of Markdown, which are shown and decide nothing.
      notes: what a reader must know.
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
