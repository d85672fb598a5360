"""Tasks × seeds: the order in which they run, are measured, saved and resumed.

`run` is a generator of events; its caller draws the progress bar and writes the files.
All arithmetic is in `jaxcl.training.trainer`, all placement in `jaxcl.training.seeds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcl.training.checkpoints import Checkpoints, Found
from jaxcl.training.epoch import known
from jaxcl.training.events import EpochDone, Interrupted, Started, TaskDone
from jaxcl.training.fingerprint import code, fingerprint, made_of, versions
from jaxcl.training.plan import Plan
from jaxcl.training.problem import Problem, per_seed, validate
from jaxcl.training.programs import Programs, make_programs
from jaxcl.training.run_state import (
    Moment,
    RunState,
    Watch,
    fresh,
    names_of,
    packed,
    unpacked,
    with_failures,
    with_session,
    with_task,
)
from jaxcl.training.seeds import SeedMesh
from jaxcl.training.state import SeedState, status_of

MATRIX = 4_000_000
"""Bytes of accuracy matrix that are saved per task, at most, if tasks are short."""
OFTEN = 30.0
"""Seconds after which a task's end is saved however large the matrix is."""


def run(
    problem: Problem,
    *,
    checkpoints: Path | None = None,
    save_every: float = 600.0,
    stop: Callable[[], bool] = lambda: False,
    mesh: SeedMesh | None = None,
    programs: Programs | None = None,
    checked: bool = False,
    watch: Sequence[Watch] = (),
    identity: Mapping[str, str] = {},
    about: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Generator[Started | EpochDone | TaskDone, None, None]:
    """Trains every seed on every task in turn, measuring all tasks after each.

    Args:
      problem: what to run.
      checkpoints: folder for the run's state, saved after each task, when `stop` says
        so and every `save_every` seconds; with a matrix over 4 MB and short tasks, only
        after each k-th task (five seeds, 1,000 tasks: k = 5). A run goes on from a
        state there and ends as if it had never stopped. A state of another problem is
        refused; a damaged one is set aside, with a warning, and the one before it is
        used. No other process may use the folder. None saves nothing.
      save_every: seconds.
      stop: called after each epoch and task; True saves and raises `Interrupted`.
      mesh: where seeds run; by default on all devices.
      programs: of `make_programs` for this problem and mesh, so that several runs of it
        in one process are compiled once; by default new ones.
      checked: whether `jaxcl.training.problem.validate` has passed the problem.
      watch: functions that receive every `Moment` of the run before the next state is
        saved, so that their output is there when a run continues from that state. From
        an earlier one it is written again, unchanged.
      identity: field -> value of further fields that a state must have, as a config's.
      about: of this process, stored with the state as JSON; by default the versions and
        the hash of the code.
      strict: refuses a state of other code or versions, of which a run else warns.

    Yields:
      One `Started`, an `EpochDone` per epoch and a `TaskDone` per task. A run that
      continues right after the end of a task repeats that task's `TaskDone`: it may
      have been killed before its caller saw the event.

    Raises:
      ValueError: the problem contradicts itself; before anything runs.
      CheckpointError: the state on disk is of another run, or cannot be read or
        written.
      Interrupted: `stop` returned True; the state is saved.
    """
    if not checked:
        validate(problem)
    me: dict[str, Any] = {"code": code(), **(about or {"versions": versions()})}
    store = None
    if checkpoints:
        mine = fingerprint(problem, identity)
        store = Checkpoints(checkpoints, mine)
        me |= made_of(mine, me.get("versions", {}))
    try:
        found = store.find(strict=strict) if store else None
        mesh = mesh or SeedMesh(len(problem.seeds), problem.seed_mode)
        programs = programs or make_programs(problem, mesh)
        yield from _events(
            *(problem, store, found, me, save_every, stop, mesh, programs, watch)
        )
    finally:
        if store:
            store.close()


def _events(
    problem: Problem,
    store: Checkpoints | None,
    found: Found | None,
    me: Mapping[str, Any],
    save_every: float,
    stop: Callable[[], bool],
    mesh: SeedMesh,
    programs: Programs,
    watch: Sequence[Watch],
) -> Generator[Started | EpochDone | TaskDone, None, None]:
    """The events of a run whose state, if any, is in `store`; see `run`."""
    num_tasks, plan = problem.stream.num_tasks, problem.plan
    sessions = with_session(found.sessions if found else (), me)
    mine = mesh.spread(per_seed(problem))
    base = mesh.share(problem.stream.base)

    def number(value: int) -> jax.Array:
        return mesh.share(np.int32(value))

    def measured(trained: SeedState, task: int, bound: int) -> np.ndarray:
        shared = (base, number(task), number(bound))
        return mesh.gather(programs.evaluate(trained, mine, shared))

    def show(what: str, task: int, epoch: int, trained: SeedState, cache=()) -> None:
        for see in watch:
            see(Moment(what, task, epoch, trained, cache, mine, base))

    trained = programs.init((), mine, ())
    names = names_of(mesh.gather(programs.report(trained, mine, ())))
    state = fresh(problem, names)
    if store and found:
        like = packed(state._replace(trained=mesh.gather(trained)))
        state = unpacked(store.restore(found.step, like))
        trained = mesh.spread(state.trained)
    else:
        state = state._replace(baseline=measured(trained, 0, num_tasks))
        show("start", -1, -1, trained)
    began, saved = time.monotonic() - float(state.seconds), time.monotonic()
    stride = max(1, state.accuracy.nbytes // MATRIX)  # tasks from one state to the next

    def elapsed() -> float:
        return time.monotonic() - began

    def save(state: RunState, trained: SeedState) -> None:
        if store:
            # The number increases with every epoch of every task.
            step = int(state.task) * 1_000_000 + int(state.epoch)
            whole = state._replace(
                trained=mesh.gather(trained), seconds=np.float64(elapsed())
            )
            store.save(step, packed(whole), sessions)

    def task_done(state: RunState, trained: SeedState, seconds: float) -> TaskDone:
        status = status_of(mesh.gather(trained.progress))
        return _task_done(state, names, status, seconds)

    yield Started(int(state.task), int(state.epoch), found is not None, sessions)
    if found and not state.epoch:
        yield task_done(state, trained, float(state.seconds))
    for task in range(int(state.task), num_tasks):
        shared = (base, number(task))
        if state.epoch == 0:
            trained = programs.begin(trained, (mine, mesh.real), ())
        cache = programs.before_task(trained, mine, shared)
        if state.epoch == 0:
            show("begin", task, -1, trained, cache)
        longest = number(_longest_epoch(problem, task))
        while not _finished(mesh, trained, plan, task, int(state.epoch)):
            epoch = int(state.epoch)
            trained, metrics = programs.epoch(
                trained, (mine, cache), (*shared, number(epoch), longest)
            )
            metrics = known(mesh.gather(metrics))
            state = state._replace(
                epoch=np.int64(epoch + 1), steps=state.steps + metrics.steps
            )
            show("epoch", task, epoch, trained, cache)
            yield EpochDone(task, epoch, metrics, elapsed())
            stopping = mesh.any_host(stop())
            if stopping or mesh.any_host(time.monotonic() - saved > save_every):
                save(state, trained)
                saved = time.monotonic()
            if stopping:
                raise Interrupted
        trained = programs.end(trained, mine, shared)
        accuracy = measured(trained, task, task + 2)
        trained, accuracy = with_failures(mesh, trained, accuracy, state)
        report = mesh.gather(programs.report(trained, mine, ()))
        state = with_task(state, task, accuracy, report)
        show("end", task, -1, trained)
        left = num_tasks - (task + 1)
        due = left % stride == 0
        if due or mesh.any_host(time.monotonic() - saved > OFTEN):
            save(state, trained)
            saved, due = time.monotonic(), True
        yield task_done(state, trained, elapsed())
        if left and mesh.any_host(stop()):
            if not due:
                save(state, trained)
            raise Interrupted


def _task_done(
    state: RunState,
    names: Mapping[str, tuple[str, ...]],
    status: tuple[str, ...],
    seconds: float,
) -> TaskDone:
    return TaskDone(
        task=int(state.task) - 1,
        accuracy=state.accuracy,
        baseline=state.baseline,
        status=status,
        steps=state.steps,
        seconds=seconds,
        report={
            quantity: {layer: state.report[quantity][layer] for layer in layers}
            for quantity, layers in names.items()
        },
    )


def _longest_epoch(problem: Problem, task: int) -> int:
    """The steps of an epoch, for the seed that has most of them."""
    offset = np.asarray(problem.stream.per_seed.train.offset)
    start = 0 if problem.joint else offset[:, task]
    size = int((offset[:, task + 1] - start).max())
    return -(-size // problem.plan.batch_size)


def _finished(
    mesh: SeedMesh, trained: SeedState, plan: Plan, task: int, epoch: int
) -> bool:
    most = plan.epochs_of(task)
    over = most is not None and epoch >= most
    return over or bool(mesh.gather(trained.progress.done).all())
