"""metrics.jsonl, and which of a problem's seeds are whose."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxcl import files
from jaxcl.training.epoch import EpochMetrics
from jaxcl.training.protocol import EpochDone, Started, TaskDone

Event = TypeVar("Event", Started, EpochDone, TaskDone)


def of_seeds(event: Event, rows: slice, share: float) -> Event:
    """An event as it would be of a run of some of the seeds only.

    Args:
      event: of all seeds.
      rows: which.
      share: of the seconds.
    """
    if isinstance(event, Started):
        return event
    seconds = event.seconds * share
    if isinstance(event, EpochDone):
        metrics = EpochMetrics(*(values[rows] for values in event.metrics))
        return event._replace(metrics=metrics, seconds=seconds)
    return event._replace(
        accuracy=event.accuracy[rows],
        baseline=event.baseline[rows],
        status=event.status[rows],
        steps=event.steps[rows],
        report={  # `jax.tree.map` would sort the layers
            quantity: {layer: values[rows] for layer, values in layers.items()}
            for quantity, layers in event.report.items()
        },
        seconds=seconds,
    )


class Log:
    """metrics.jsonl: a line per epoch and task, each once, whenever a run is killed.

    A line is a JSON object; lists have a value per seed, in the order of ``seeds`` in
    result.json, null where a seed did not train or has failed. An epoch's: task and
    epoch, from 0; steps, the optimizer's in it; seconds; loss, its mean over the steps;
    val_accuracy and val_loss after it, null without validation data; lr_scale, what
    patience has left of the learning rate. A task's end: task, event "task_end",
    seconds since the task began, and accuracy on that task's test examples.

    A line is on the disk before the state that follows it: a run that goes on finds the
    lines of all that it will not do again, drops those of what it will, and gets the
    last task's event again in case its line is missing.
    """

    def __init__(self, file: Path):
        self.file = file
        self.epochs = 0  # whose line is written
        self._ended = -1  # the last task whose end is written

    def write(self, event: Started | EpochDone | TaskDone) -> bool:
        """Writes what an event tells; False if its line was there before."""
        if isinstance(event, Started):
            self._forget_from(event.task, event.epoch)
            return False
        if isinstance(event, EpochDone):
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
            self.epochs += 1
            return True
        new = event.task > self._ended
        if new:
            self._append(
                {
                    "task": event.task,
                    "event": "task_end",
                    "seconds": round(event.seconds, 3),
                    "accuracy": _plain(event.accuracy[:, event.task]),
                }
            )
            self._ended = event.task
        return new

    def _append(self, line: dict[str, Any]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _forget_from(self, task: int, epoch: int) -> None:
        """Drops the lines of epochs and tasks that will run again, and torn ones."""
        if not self.file.exists():
            return
        text = self.file.read_text(errors="replace")
        kept = []
        for line in text.splitlines(keepends=True):
            try:
                told = json.loads(line)
                ends = "event" in told
                again = (told["task"], told.get("epoch", 0)) >= (task, epoch)
                again = told["task"] >= task if ends else again
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill; its epoch runs again
            if not again and line.endswith("\n"):
                kept.append(line)
                self.epochs += not ends
                self._ended = max(self._ended, told["task"] if ends else -1)
        if "".join(kept) != text:
            files.write_whole(self.file, "".join(kept))


def _plain(array: np.ndarray) -> list[Any]:
    array = np.asarray(array, np.float64).round(6)
    return np.where(np.isfinite(array), array, None).tolist()
