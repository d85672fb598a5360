"""Writes a run's files into its folder as the run's events arrive."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jaxcl import files
from jaxcl.linearity import unprotected
from jaxcl.training.observation import strategy_of
from jaxcl.training.problem import Problem, setup_of
from jaxcl.training.protocol import EpochDone, Started, TaskDone

from .. import config as configs
from . import folders, machine, notes, results, writers
from .folders import Part
from .log import Log
from .matrix import MatrixFile
from .results import Result

RESULT_EVERY = 30.0
"""Least seconds between two writings of result.json; the last one always happens."""
RESULT_SHARE = 0.01
"""Most of a run's time that writing result.json may take: of many tasks it is long."""


class Recorder:
    """Writes the files of one part of a job; locks the part's folder until `close`.

    Host code. The folder belongs to the config as soon as something has run in it. Only
    a result of more tasks replaces an existing one; a finished result stays.
    """

    def __init__(self, part: Part, problem: Problem, write: bool):
        """Takes the folder.

        Args:
          part: the run that is written.
          problem: what runs.
          write: whether this process writes; other processes only keep the result.

        Raises:
          UsageError: the folder cannot be written, or another process is using it.
        """
        self.part, self.problem = part, problem
        self.result: Result | None = None
        setup = setup_of(problem)
        told = unprotected(strategy_of(problem, setup), problem.optimizer, setup)
        self._notes: list[str] = [told] if told else []  # a table adds the method
        self._told = 0  # number of tasks whose notes are in `_notes`
        self._lock: files.Lock | None = None
        if not write:
            return
        folder = part.workdir
        try:
            self._lock = files.Lock(folder)
        except files.InUse as error:
            raise machine.UsageError(str(error)) from error
        except OSError as error:
            raise machine.UsageError(
                f"cannot write to {folder}: {error.strerror}; give another --workdir"
            ) from error
        files.sweep(folder)
        self._log = Log(folder / "metrics.jsonl")
        self._writers: list[writers.Writer] = []
        self._matrix = MatrixFile(folder / "matrix.npy")
        self._best = _tasks_done(part)
        self._written = 0  # tasks in the result.json that this process has written
        self._next = -math.inf  # the time from which result.json is written again

    def close(self) -> None:
        """Writes what is not written yet, and unlocks the folder."""
        if self._lock is None:
            return
        try:
            with _telling(self.part):
                self._save()
            for writer in self._writers:
                writer.close()
        finally:
            self._lock.release()

    def take(self, event: Started | EpochDone | TaskDone) -> None:
        """Writes an event to the files; it must be of this part's seeds only.

        Raises:
          UsageError: a file cannot be written; what was saved is kept.
        """
        if isinstance(event, Started):
            self._sessions = event.sessions
        if isinstance(event, TaskDone):
            self._note(event)
            self.result = result_of(
                self.part, self.problem, event, self._notes, self._sessions
            )
        if self._lock is None:
            return
        with _telling(self.part):
            if not isinstance(event, Started):
                if not (self.part.workdir / results.CONFIG_NAME).exists():
                    folders.claim(self.part.config, self.part.workdir)
            new = self._log.write(event)
            if isinstance(event, Started):
                config, at = self.part.config, self._log.epochs
                self._writers = writers.opened(config, self.part.workdir, at)
            elif new and self._writers:
                values = writers.scalars_of(event, self.part.config.seeds)
                for writer in self._writers:
                    writer.scalars(self._log.epochs, values)
            if isinstance(event, TaskDone):
                self._matrix.grow(event.accuracy, event.task)
                if time.monotonic() >= self._next:
                    self._save()

    def _save(self) -> None:
        done = self.result.tasks_done if self.result else 0
        if self.result is None or done <= max(self._best, self._written):
            return
        began = time.monotonic()
        results.save(self.part.workdir, self.result)
        ended = time.monotonic()
        self._written = done
        self._next = ended + max(RESULT_EVERY, (ended - began) / RESULT_SHARE)

    def _note(self, done: TaskDone) -> None:
        for task in range(self._told, done.task + 1):
            self._notes += notes.of_task(done.report, task, done.status)
        self._told = max(self._told, done.task + 1)


def result_of(
    part: Part,
    problem: Problem,
    done: TaskDone,
    told: Sequence[str],
    sessions: Sequence[Mapping[str, Any]],
) -> Result:
    """The result of a part's run after a task."""
    stream, config = problem.stream, part.config
    told = [*stream.notes, *told, *_ways(sessions)]
    if problem.joint:
        once = "is one training on the data of all tasks"
        each = "trains each task on all data so far"
        told.append(f"joint {once if problem.joint_once else each}: the upper bound")
    return Result(
        config_name=config.name,
        row=configs.method_of(config).row,
        scenario=stream.scenario,
        seeds=list(config.seeds),
        status=list(done.status),
        matrix=done.accuracy,
        baseline=done.baseline,
        task_names=list(stream.task_names),
        tasks_done=done.task + 1,
        steps=int(done.steps.sum()),
        wall_s=done.seconds,
        device="; ".join(dict.fromkeys(session["device"] for session in sessions)),
        versions=sessions[-1]["versions"],
        notes=told,
        report=done.report,
        sessions=sessions,
        config=json.loads(config.to_json_best_effort()),
    )


def _ways(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes for a reader on a run whose code or versions changed on the way."""
    ways = [{**s["versions"], "the code of jaxcl": s["code"]} for s in sessions]
    found = []
    for before, after in zip(ways, ways[1:], strict=False):
        changed = [
            f"{name} {before.get(name)} to {after.get(name)}"
            for name in sorted(before | after)
            if before.get(name) != after.get(name)
        ]
        if changed:
            found.append(f"the run was broken off and went on from {changed[0]}")
            found[-1] += "".join(f", {change}" for change in changed[1:])
    return found


def _tasks_done(part: Part) -> int:
    """Tasks in the existing result; an unreadable result is renamed."""
    file = part.workdir / results.FILE_NAME
    try:
        return results.load(file).tasks_done
    except FileNotFoundError:
        return 0
    except ValueError:
        file.rename(file.with_name(f"damaged-{file.name}"))
        return 0


@contextmanager
def _telling(part: Part) -> Iterator[None]:
    """Reports a full or missing disk in one line."""
    try:
        yield
    except OSError as error:
        raise machine.UsageError(
            f"cannot write {error.filename or part.workdir}: {error.strerror}; what "
            "was saved is kept, mend that and run the same command again"
        ) from error
