"""Runs what a config describes into a folder, and takes a broken run up again.

The folder gets `config.json`, `metrics.jsonl`, `result.json` and checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxcl.training import protocol
from jaxcl.training.problem import Problem, validate
from jaxcl.training.protocol import Interrupted, TaskDone
from jaxcl.training.seeds import SeedMesh

from .. import config as configs
from . import kept, machine, measured, notes, recording, results
from .log import Log, of_seeds
from .progress import Display
from .results import Result

# Fields of a config: how often to save, how to lay seeds out, which rows to compare.
CHANGES_NOTHING = frozenset({"checkpoint_every", "seed_mode", "rows"})


class Part(NamedTuple):
    """One config's run: its seeds, and the folder it goes to."""

    config: ConfigDict
    workdir: Path


class Job(NamedTuple):
    """What is to run: a problem, built and checked once, and whose its seeds are.

    Attributes:
      problem: its seeds are those of the first part, then those of the second, ….
      parts: whose seeds they are. The seconds of a part are its share of all.
      checkpoints: folder of the state that the parts have in common.
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
      DataError: the data set cannot be had.
    """
    problem = configs.problem(config)
    validate(problem)
    kept.require(config.keep_weights)
    recording.require(config, problem)
    return Job(problem, (Part(config, workdir),), workdir / "checkpoints")


def execute(config: ConfigDict, workdir: Path) -> Result:
    """Runs what a config describes, or what is left of it, into a folder.

    Args:
      config: of one row.
      workdir: made if absent; one that holds another config's run is refused.

    Returns:
      The result, as written to ``workdir/result.json``.

    Raises:
      As `prepare` and `carry_out`.
    """
    return carry_out(prepare(config, workdir))[0]


def carry_out(job: Job) -> list[Result]:
    """Runs a job, or what is left of it, each part into a folder of its own.

    Returns:
      The parts' results.

    Raises:
      UsageError: a folder cannot be written or belongs to another config.
      Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    problem, parts = job.problem, job.parts
    machine.versions()  # of the code that runs, not of what it may be when it ends
    write = machine.is_main_process()
    ends = np.cumsum([len(part.config.seeds) for part in parts]).tolist()
    rows = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    logs = []
    for part in parts:
        if write:
            machine.writable(part.workdir)
            _claim(part.workdir, part.config)
        logs.append(Log(part.workdir / "metrics.jsonl" if write else None))
    config, many = parts[0].config, len(parts)
    label = f"{config.name}/{configs.method_of(config).label}"
    label += f", {many} settings at once" if many > 1 else ""
    mesh = SeedMesh(len(problem.seeds), problem.seed_mode)
    folders = [(part.workdir, own) for part, own in zip(parts, rows, strict=True)]
    watch = []
    if config.keep_weights != "none":
        keep = config.keep_weights
        watch.append(kept.Keeper(problem, mesh, keep, folders, write))
    if recording.asked(config):
        watch.append(recording.Recorder(config, problem, mesh, folders, write))
    found: list[Result] = []
    with (
        machine.StopOnSignal() as stop,
        Display(
            label, problem.stream.num_tasks, config.train.epochs, not write
        ) as show,
    ):
        for event in protocol.run(
            problem,
            checkpoints=job.checkpoints,
            save_every=config.checkpoint_every,
            stop=stop,
            mesh=mesh,
            checked=True,
            watch=watch,
        ):
            show.show(event)
            own = [of_seeds(event, mine, 1 / many) for mine in rows]
            for log, part_event in zip(logs, own, strict=True):
                log.write(part_event)
            if isinstance(event, TaskDone):
                found = [
                    _result(part.config, problem, part_event)
                    for part, part_event in zip(parts, own, strict=True)
                ]
                for part, result in zip(parts, found, strict=True):
                    if write:
                        results.save(part.workdir, result)
                found = [
                    result._replace(features=measured.load(part.workdir))
                    for part, result in zip(parts, found, strict=True)
                ]
        # A run that ends with the epoch in which it was told to stop is whole; what
        # its command would do next is not to begin.
        if stop():
            raise Interrupted
    return found  # every run ends with a TaskDone


def finished(config: ConfigDict, workdir: Path) -> Result | None:
    """The result of a config's run in a folder if it has come to its end."""
    if not (workdir / "config.json").exists():
        return None
    _claim(workdir, config)
    try:
        result = results.load(workdir)
    except FileNotFoundError:
        return None
    return result if result.tasks_done == len(result.task_names) else None


def _claim(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, or checks that the folder's run is of this config."""
    file = workdir / "config.json"
    if file.exists():
        try:
            theirs = configs.spelled_out(json.loads(file.read_text()))
        except ValueError as error:
            raise machine.UsageError(
                f"{file} is not valid JSON ({error}); use another --workdir"
            ) from error
        mine = configs.spelled_out(config)
        different = [
            f"{key} is {theirs.get(key)!r} there and {mine.get(key)!r} now"
            for key in sorted(theirs | mine)
            if theirs.get(key) != mine.get(key) and key not in CHANGES_NOTHING
        ]
        if different:
            raise machine.UsageError(
                f"{workdir} holds a run of another config: {'; '.join(different)}; "
                "use another --workdir"
            )
    else:
        fields = json.loads(config.to_json_best_effort())
        file.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")


def _result(config: ConfigDict, problem: Problem, done: TaskDone) -> Result:
    stream = problem.stream
    told = [
        note
        for task in range(done.task + 1)
        for note in notes.of_task(done.report, task, done.status)
    ]
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
        device=machine.device(),
        versions=machine.versions(),
        notes=told,
        report=done.report,
        config=json.loads(config.to_json_best_effort()),
    )
