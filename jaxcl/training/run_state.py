"""All that a run needs to continue, on the host: the content of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcl.data.stream import Base
from jaxcl.training.problem import PerSeed, Problem
from jaxcl.training.seeds import SeedMesh
from jaxcl.training.state import SeedState
from jaxcl.types import PyTree

RunReport = dict[str, dict[str, np.ndarray]]
"""quantity -> layer -> float32[S, T] so far, NaN where not measured."""


class Moment(NamedTuple):
    """A moment of a run, for functions that watch it; arrays are on the devices.

    Attributes:
      what: "start", before anything is trained; "begin" of a task; an "epoch" done;
        the "end" of a task, with the weights that are carried to the next.
      task: from 0; −1 at the start of the run.
      epoch: the one done, from 0; else −1.
      trained: [S with padding]; the next epoch overwrites it, so read it but do not
        keep it.
      cache: what ``before_task`` made, at "begin" and "epoch"; else ().
      mine: every seed's data and settings.
      base: the images.
    """

    what: str
    task: int
    epoch: int
    trained: SeedState
    cache: PyTree
    mine: PerSeed
    base: Base


Watch = Callable[[Moment], None]


class RunState(NamedTuple):
    """All that a run needs to continue; host arrays."""

    trained: PyTree  # SeedState, leading [S]
    accuracy: np.ndarray  # float32[S, T, T]
    baseline: np.ndarray  # float32[S, T] at random initialisation
    report: RunReport  # `Strategy.report` by task
    task: np.ndarray  # int64[] the next epoch's task
    epoch: np.ndarray  # int64[] the next epoch
    steps: np.ndarray  # int64[S] taken so far
    seconds: np.ndarray  # float64[] spent so far


def names_of(report: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Quantities and layers of a report, in the strategy's order.

    Trees of dicts that pass through JAX or a checkpoint come back sorted.
    """
    return {quantity: tuple(layers) for quantity, layers in report.items()}


def fresh(problem: Problem, names: Mapping[str, tuple[str, ...]]) -> RunState:
    """The state of a run in which nothing has been trained.

    Joint training on all tasks at once starts at the last task.
    """
    seeds, tasks = len(problem.seeds), problem.stream.num_tasks
    first = tasks - 1 if problem.joint_once else 0
    unknown = np.full((seeds, tasks), np.nan, np.float32)
    return RunState(
        trained=None,
        accuracy=np.full((seeds, tasks, tasks), np.nan, np.float32),
        baseline=unknown,
        report={q: dict.fromkeys(layers, unknown) for q, layers in names.items()},
        task=np.int64(first),
        epoch=np.int64(0),
        steps=np.zeros(seeds, np.int64),
        seconds=np.float64(0),
    )


def with_task(state: RunState, task: int, accuracy, report) -> RunState:
    """The state after a task's end, with the measurements made then."""

    def put(past: np.ndarray, now: np.ndarray) -> np.ndarray:
        past = past.copy()
        past[:, task] = now
        return past

    return state._replace(
        accuracy=put(state.accuracy, accuracy),
        report={
            quantity: {layer: put(past, report[quantity][layer]) for layer, past in of}
            for quantity, of in ((q, v.items()) for q, v in state.report.items())
        },
        task=np.int64(task + 1),
        epoch=np.int64(0),
    )


def packed(state: RunState) -> RunState:
    """The state as it is stored: each row of `accuracy` as its difference to the last.

    A row differs from the one before in few numbers, and not at all where nothing is
    measured yet. What is equal is 0 in the bits' exclusive or, which is exact and which
    a checkpoint compresses well. Without this, what a run of many tasks writes after
    each is longer and longer.
    """
    bits = state.accuracy.view(np.uint32).copy()
    bits[:, 1:] ^= state.accuracy.view(np.uint32)[:, :-1]
    return state._replace(accuracy=bits)


def unpacked(state: RunState) -> RunState:
    """Inverse of `packed`."""
    bits = np.bitwise_xor.accumulate(state.accuracy, axis=1)
    return state._replace(accuracy=bits.view(np.float32))


def with_session(
    before: Sequence[Mapping[str, Any]], me: Mapping[str, Any]
) -> tuple[Mapping[str, Any], ...]:
    """The processes of a run so far, including this one.

    Equal ones in a row are merged into one, with their number as "starts".
    """
    *earlier, last = before or [{}]
    if {k: v for k, v in last.items() if k != "starts"} == me:
        return (*earlier, {**last, "starts": last["starts"] + 1})
    return (*before, {**me, "starts": 1})


def with_failures(
    mesh: SeedMesh, trained: SeedState, accuracy: np.ndarray, state: RunState
) -> tuple[SeedState, np.ndarray]:
    """Marks seeds as failed that give no answers to a task trained so far.

    Their training loss was finite, but what the method made of the weights afterwards,
    at the task's end or in evaluation, is not.

    Args:
      mesh: the run's.
      trained: all seeds, after the task's end.
      accuracy: float32[S, T], NaN where a seed's logits are.
      state: of the run, before the task is noted in it.

    Returns:
      The seeds, and the accuracies: NaN for all tasks of a seed that has failed.
    """
    lost = np.asarray(np.isnan(accuracy[:, : int(state.task) + 1]).any(axis=1))
    if not lost.any():
        return trained, accuracy
    progress = mesh.gather(trained.progress)
    new = lost & (progress.failed_task < 0)
    marked = progress._replace(
        done=progress.done | new,
        failed_task=np.where(new, state.task, progress.failed_task).astype(np.int32),
        failed_epoch=np.where(
            new, max(int(state.epoch) - 1, 0), progress.failed_epoch
        ).astype(np.int32),
    )
    trained = trained._replace(progress=mesh.spread(marked))
    return trained, np.where(lost[:, None], np.float32(np.nan), accuracy)
