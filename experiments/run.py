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
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import config as configs
from experiments import launch, notes, report, results
from experiments.progress import Display
from jaxcl import protocol
from jaxcl.protocol import EpochDone, Interrupted, Started, TaskDone


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


def execute(config: ConfigDict, workdir: Path) -> results.Result:
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
    protocol.check(problem)
    write = launch.is_main_process()
    if write:
        launch.writable(workdir)
        _claim(workdir, config)
    log = _Log(workdir / "metrics.jsonl" if write else None)
    label = f"{config.name}/{config.row or config.strategy}"
    result = None
    with (
        launch.StopOnSignal() as stop,
        Display(
            label, problem.stream.num_tasks, config.train.epochs, not write
        ) as show,
    ):
        for event in protocol.run(
            problem,
            checkpoints=workdir / "checkpoints",
            save_every=config.checkpoint_every,
            stop=stop,
        ):
            show.show(event)
            log.write(event)
            if isinstance(event, TaskDone):
                result = _result(config, problem, event)
                if write:
                    results.save(workdir, result)
    assert result is not None  # every run ends with a TaskDone
    return result


def _claim(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, or checks that the folder's run is of this config."""
    file = workdir / "config.json"
    mine = json.loads(config.to_json_best_effort())
    # How often to save and how to lay seeds out change no result.
    free = {"checkpoint_every", "lanes", "rows"}
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


class _Log:
    """metrics.jsonl: a line an epoch and a task, each written once, resumed or not."""

    def __init__(self, file: Path | None):
        self.file = file

    def write(self, event: Started | EpochDone | TaskDone) -> None:
        if self.file is None:
            return
        if isinstance(event, Started):
            self._forget_from(event.task, event.epoch)
        elif isinstance(event, EpochDone):
            m = event.metrics
            self._append(
                {
                    "task": event.task,
                    "epoch": event.epoch,
                    "steps": m.steps.tolist(),
                    "seconds": round(event.seconds, 3),
                    "loss": _plain(m.loss),
                    "val_accuracy": _plain(m.valid_accuracy),
                    "val_loss": _plain(m.valid_loss),
                    "lr_scale": _plain(m.lr_scale),
                }
            )
        else:
            self._forget_from(event.task, -1)
            self._append(
                {
                    "task": event.task,
                    "event": "task_end",
                    "seconds": round(event.seconds, 3),
                    "accuracy": _plain(event.accuracy[:, event.task]),
                }
            )

    def _append(self, line: dict[str, Any]) -> None:
        assert self.file is not None
        with self.file.open("a") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def _forget_from(self, task: int, epoch: int) -> None:
        """Drops lines of epochs that will run again; epoch −1: of task ends only."""
        assert self.file is not None
        if not self.file.exists():
            return
        kept = []
        for text in self.file.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut off by a kill; its epoch runs again
            ends = "event" in line
            again = (line["task"], ends or line.get("epoch", 0)) >= (task, epoch)
            if epoch < 0:
                again = ends and line["task"] >= task
            elif ends:
                again = line["task"] >= task
            if not again:
                kept.append(text + "\n")
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self.file)


def _plain(array: np.ndarray) -> list[Any]:
    array = np.asarray(array, np.float64).round(6)
    return np.where(np.isfinite(array), array, None).tolist()


def _result(config: ConfigDict, problem: protocol.Problem, done: TaskDone):
    stream = problem.stream
    told = [n for t in range(done.task + 1) for n in notes.of_task(done.report, t)]
    if problem.joint:
        told.append("joint trains each task on all data so far: the upper bound")
    return results.Result(
        config_name=config.name,
        row=config.row or config.strategy,
        scenario=stream.scenario,
        seeds=list(problem.seeds),
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
