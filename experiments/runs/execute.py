"""Runs what a config describes into a folder, and resumes an interrupted run.

The folder gets `config.json`, `metrics.jsonl`, `matrix.npy`, `result.json` and
checkpoints.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxcl import _interrupts, files
from jaxcl.checks import line_of
from jaxcl.data.cache import DataError
from jaxcl.training import protocol
from jaxcl.training.fingerprint import fingerprint
from jaxcl.training.problem import Problem, validate
from jaxcl.training.programs import trace
from jaxcl.training.protocol import Interrupted, Started
from jaxcl.training.run_state import Watch
from jaxcl.training.seeds import SeedMesh

from .. import config as configs
from . import folders, kept, machine, measured, recording, results, writers
from .folders import Part
from .log import of_seeds
from .progress import Display
from .record import Recorder
from .results import Result


class Job(NamedTuple):
    """A problem to run, built and checked once, and the parts that its seeds belong to.

    Attributes:
      problem: its seeds are those of the first part, then those of the second, ….
      parts: the runs that share the problem. The seconds are divided equally among
        them.
      checkpoints: folder of the state that the parts share.
    """

    problem: Problem
    parts: tuple[Part, ...]
    checkpoints: Path


def prepare(config: ConfigDict, workdir: Path) -> Job:
    """Builds and checks what a config describes; runs and writes nothing.

    Args:
      config: of one row.
      workdir: the folder of its run.

    Raises:
      ValueError: the config contradicts itself.
      DataError: the data set cannot be obtained.
      UsageError: the folder belongs to another config, or another process is using it.
    """
    _interrupts.check()
    problem = configs.problem(config)
    if ":" in config.strategy or ":" in config.optimizer.name:
        _try_out(config, problem)
    else:
        validate(problem)
    job = Job(problem, (Part(config, workdir),), workdir / "checkpoints")
    writers.require(config.write_to)
    recording.require(config, problem)
    folders.require_ours(job.parts, job.checkpoints)
    return job


def _try_out(config: ConfigDict, problem: Problem) -> None:
    """Refuses a strategy or an optimizer from elsewhere that cannot train a task."""
    valid = False
    try:
        validate(problem)
        valid = True
        trace(problem)
    except Exception as error:
        if not valid and isinstance(error, DataError | MemoryError | ValueError):
            raise  # of the config, not of a hook
        why = str(error).partition("\n")[0]
        said = f"optimizer {config.optimizer.name!r} cannot train a task"
        if ":" in config.strategy:
            own = f", or {said}" if ":" in config.optimizer.name else ""
            said = (
                f"strategy {config.strategy!r} has a hook that does not do what "
                f"`jaxcl.contract.Strategy` says{own}"
            )
        raise ValueError(
            f"{said}: {type(error).__name__}: {why}"
            + line_of(error, Path(__file__).parents[1])
        ) from error


def execute(config: ConfigDict, workdir: Path, *, strict: bool = False) -> Result:
    """Runs what a config describes, or the rest of it, into a folder.

    Args:
      config: of one row.
      workdir: made if absent. A folder with another config's run is refused; a folder
        with a finished run of this config is left unchanged, except that what a killed
        process left there is removed.
      strict: refuses a state that other code or other versions have made.

    Returns:
      The result, as written to ``workdir/result.json``.

    Raises:
      As `prepare` and `carry_out`.
    """
    return carry_out(prepare(config, workdir), strict=strict)[0]


def carry_out(job: Job, *, strict: bool = False) -> list[Result]:
    """Runs a job, or the rest of it, each part into its own folder.

    Args:
      job: from `prepare`.
      strict: refuses a state that other code or other versions have made.

    Returns:
      The parts' results.

    Raises:
      UsageError: a folder cannot be written, belongs to another config, or is in use
        by another process.
      CheckpointError: a state belongs to another run, or cannot be read or written.
      Interrupted: Ctrl-C, SIGTERM or SIGHUP; the state is saved.
      KeyboardInterrupt: one of these came before it began.
    """
    _interrupts.check()
    problem, parts = job.problem, job.parts
    machine.versions()  # now: the checkout may have changed when the run ends
    write = machine.is_main_process()
    ends = np.cumsum([len(part.config.seeds) for part in parts]).tolist()
    rows = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    config, many = parts[0].config, len(parts)
    label = f"{config.name}/{configs.method_of(config).label}"
    label += f", {many} settings at once" if many > 1 else ""
    tasks = problem.stream.num_tasks
    with (
        machine.StopOnSignal() as stop,
        Display(label, tasks, problem.plan.epochs_of, not write) as show,
        ExitStack() as stack,
    ):
        before = [_whole(part) for part in parts]
        found = [result for result in before if result is not None]
        if len(found) == many:
            now = fingerprint(problem, folders.identity(parts))
            folders.require_unchanged(job.checkpoints, now, strict=strict)
            files.tidy(job.checkpoints)  # as `finished` does for each part's folder
            for part in parts:
                folders.warn_if_not_written(part)
            show.show(Started(tasks, 0, True))
            return found
        recorders = [
            stack.enter_context(closing(Recorder(part, problem, write)))
            for part in parts
        ]
        mesh = SeedMesh(len(problem.seeds), problem.seed_mode)
        events = protocol.run(
            problem,
            checkpoints=job.checkpoints,
            save_every=config.checkpoint_every,
            stop=stop,
            mesh=mesh,
            checked=True,
            watch=_watch(job, mesh, rows, write),
            identity=folders.identity(parts),
            about={"device": machine.device(), "versions": dict(machine.versions())},
            strict=strict,
        )
        for event in stack.enter_context(closing(events)):
            show.show(event)
            for recorder, mine in zip(recorders, rows, strict=True):
                recorder.take(of_seeds(event, mine, 1 / many))
        # If the run's last epoch ends after the signal, the run is complete; but the
        # command must not begin its next one.
        if stop():
            raise Interrupted
    # Every run ends with a `TaskDone`. A part that was finished before is kept.
    ended = [
        old or recorder.result for old, recorder in zip(before, recorders, strict=True)
    ]
    return [
        result._replace(features=measured.load(part.workdir))
        for part, result in zip(parts, ended, strict=True)
        if result
    ]


def _watch(job: Job, mesh: SeedMesh, rows: list[slice], write: bool) -> list[Watch]:
    """The watchers of a run's moments, as the first part's config asks for them."""
    problem, parts = job.problem, job.parts
    whose = [(part.workdir, own) for part, own in zip(parts, rows, strict=True)]
    watch: list[Watch] = []
    keep = parts[0].config.keep_weights
    if keep != "none":
        watch.append(kept.Keeper(problem, mesh, keep, whose, write))
    if recording.asked(parts[0].config):
        config = parts[0].config
        watch.append(recording.Recorder(config, problem, mesh, whose, write))
    return watch


def finished(config: ConfigDict, workdir: Path) -> Result | None:
    """The result of a config's run in a folder; None if the run is not finished.

    A finished run's process may have been killed before it cleaned up: what it left is
    removed.

    Raises:
      UsageError: the folder belongs to another config.
      ValueError: the result cannot be read.
    """
    if not (workdir / results.CONFIG_NAME).exists():
        return None
    folders.require_same(config, workdir)
    try:
        result = results.load(workdir)
    except FileNotFoundError:
        return None
    if result.tasks_done < len(result.task_names):
        return None
    files.tidy(workdir)
    return result


def _whole(part: Part) -> Result | None:
    """A part's finished result; None if it is not finished or cannot be read."""
    try:
        return finished(part.config, part.workdir)
    except ValueError:
        return None
