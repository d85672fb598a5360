r"""Runs one method on one benchmark, all seeds at once.

python -m experiments.run --config=configs/permuted_mnist.py:ewc --workdir=DIR

The same command goes on where it was broken off. The workdir gets `config.json`,
`metrics.jsonl`, `result.json`, checkpoints, and the table and figures of the run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import config as configs
from experiments import launch, notes, report, results
from jaxcl.training import protocol
from jaxcl.training.problem import Problem, validate
from jaxcl.training.protocol import Interrupted, TaskDone

from .log import Log, of_lanes
from .progress import Display
from .results import Result


def main(argv: Sequence[str]) -> int:
    if _WORKDIR.value is None:
        raise launch.UsageError("--workdir=DIR is missing: where results go")
    workdir = Path(_WORKDIR.value)
    try:
        result = execute(_CONFIG.value, workdir)
    except Interrupted:
        return stopped(workdir)
    if launch.is_main_process():
        report.build([result], workdir)
        report.console_table([result])
        print(f"table and figures: {workdir}")
    return 0


def stopped(workdir: Path) -> int:
    print(
        f"stopped; its state is in {workdir}, the same command goes on from there",
        file=sys.stderr,
    )
    return 130


class Part(NamedTuple):
    """One config's run: the lanes of its seeds, and the folder it goes to."""

    config: ConfigDict
    workdir: Path


def execute(config: ConfigDict, workdir: Path) -> Result:
    """Runs what a config describes, or what is left of it, into a folder.

    Args:
      config: of one row.
      workdir: made if absent; one that holds another config's run is refused.

    Returns:
      The result, as written to ``workdir/result.json``.

    Raises:
      UsageError: the folder cannot be written or belongs to another config.
      ValueError: the config contradicts itself.
      Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    problem = configs.problem(config)
    parts = [Part(config, workdir)]
    return execute_together(problem, parts, workdir / "checkpoints")[0]


def execute_together(
    problem: Problem, parts: Sequence[Part], checkpoints: Path
) -> list[Result]:
    """Runs several configs as one problem, each into a folder of its own.

    Args:
      problem: its seeds are those of the first part, then those of the second, ….
      parts: whose lanes they are. A part's seconds are its share of them all.
      checkpoints: folder of the state they have in common.

    Returns:
      The parts' results.

    Raises:
      As `execute`.
    """
    validate(problem)
    write = launch.is_main_process()
    ends = np.cumsum([len(part.config.seeds) for part in parts]).tolist()
    lanes = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    logs = []
    for part in parts:
        if write:
            launch.writable(part.workdir)
            _claim(part.workdir, part.config)
        logs.append(Log(part.workdir / "metrics.jsonl" if write else None))
    config, many = parts[0].config, len(parts)
    label = f"{config.name}/{config.row or config.strategy}"
    label += f", {many} settings at once" if many > 1 else ""
    found: list[Result] = []
    with (
        launch.StopOnSignal() as stop,
        Display(
            label, problem.stream.num_tasks, config.train.epochs, not write
        ) as show,
    ):
        for event in protocol.run(
            problem,
            checkpoints=checkpoints,
            save_every=config.checkpoint_every,
            stop=stop,
        ):
            show.show(event)
            own = [of_lanes(event, mine, 1 / many) for mine in lanes]
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
    mine = json.loads(config.to_json_best_effort())
    # How often to save and how to lay seeds out change no result.
    free = {"checkpoint_every", "seed_mode", "rows"}
    if file.exists():
        try:
            theirs = json.loads(file.read_text())
        except ValueError as error:
            raise launch.UsageError(
                f"{file} is not valid JSON ({error}); use another --workdir"
            ) from error
        different = [
            f"{key} is {theirs_value!r} there and {value!r} now"
            for key, theirs_value, value in _differences(theirs, mine)
            if key.split(".")[0] not in free
        ]
        if different:
            raise launch.UsageError(
                f"{workdir} holds a run of another config: {'; '.join(different)}; "
                "use another --workdir"
            )
    else:
        file.write_text(json.dumps(mine, indent=1, sort_keys=True) + "\n")


def _differences(a: Any, b: Any, prefix: str = ""):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            yield from _differences(
                a.get(key), b.get(key), f"{prefix}.{key}".strip(".")
            )
    elif a != b:
        yield prefix, a, b


def _result(config: ConfigDict, problem: Problem, done: TaskDone) -> Result:
    stream = problem.stream
    told = [
        note
        for task in range(done.task + 1)
        for note in notes.of_task(done.report, task, done.status)
    ]
    if problem.joint:
        told.append("joint trains each task on all data so far: the upper bound")
    return Result(
        config_name=config.name,
        row=config.row or config.strategy,
        scenario=stream.scenario,
        seeds=list(config.seeds),
        status=list(done.status),
        matrix=done.accuracy,
        baseline=done.baseline,
        task_names=list(stream.task_names),
        tasks_done=done.task + 1,
        steps=int(done.steps.sum()),
        wall_s=done.seconds,
        device=launch.device(),
        versions=launch.versions(),
        notes=told,
        space=done.report or None,
    )


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.")
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "FILE or FILE:row; fields are --config.field=value."
    )
    flags.mark_flag_as_required("config")
    launch.run(main)
