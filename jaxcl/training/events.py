"""The events of a run for its caller: it has begun; an epoch or a task is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcl.training.epoch import EpochMetrics
from jaxcl.training.run_state import RunReport


class Started(NamedTuple):
    """The run begins, or continues, at this task and epoch."""

    task: int
    epoch: int
    resumed: bool
    # `about` of each process of the run so far, this one last; equal ones in a row are
    # merged into one, with their number as "starts".
    sessions: tuple[Mapping[str, Any], ...] = ()


class EpochDone(NamedTuple):
    task: int
    epoch: int
    metrics: EpochMetrics  # numpy, each [S]
    seconds: float


class TaskDone(NamedTuple):
    task: int
    accuracy: np.ndarray  # [S, T, T] so far, NaN where not measured
    baseline: np.ndarray  # [S, T]
    status: tuple[str, ...]  # per seed: "ok" or "failed: task t, epoch e", 1-based
    steps: np.ndarray  # [S]
    seconds: float
    report: RunReport


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""
