"""Writes metrics.jsonl, and cuts an event down to some of a problem's seeds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxcl import files
from jaxcl.training.protocol import EpochDone, Started, TaskDone

Event = TypeVar("Event", Started, EpochDone, TaskDone)


def of_seeds(event: Event, rows: slice, share: float) -> Event:
    """An event as it would come from a run of only some of the seeds.

    Args:
      event: of all seeds.
      rows: which seeds.
      share: their share of the seconds.
    """
    if isinstance(event, Started):
        return event
    seconds = event.seconds * share
    if isinstance(event, EpochDone):
        metrics = jax.tree.map(lambda values: values[rows], event.metrics)
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
    """metrics.jsonl: a line per epoch and task end, each once even if a run is killed.

    A line is a JSON object. Its lists have a value per seed, in the order of ``seeds``
    in result.json; null means that the seed did not train or has failed. The line of an
    epoch has: task and epoch, from 0; steps, the optimizer's steps in the epoch;
    seconds; loss, the mean over the steps; val_accuracy and val_loss after the epoch,
    null without validation data; lr_scale, the share of the learning rate that patience
    has left. The line of a task's end has: task; event, "task_end"; seconds since the
    task began; accuracy on that task's test examples.

    A line is on the disk before the state that follows it. A resumed run therefore
    finds the lines of everything that it will not repeat. It drops the lines of what it
    repeats, and gets the last task's event again in case that line is missing.
    """

    def __init__(self, file: Path):
        self.file = file
        self.epochs = 0  # number of epochs whose lines are written
        self._ended = -1  # the last task whose end is written

    def write(self, event: Started | EpochDone | TaskDone) -> bool:
        """Writes an event's line; returns False if there was no new line to write."""
        if isinstance(event, Started):
            self._forget_from(event.task, event.epoch)
            return False
        if isinstance(event, EpochDone):
            m = event.metrics
            line = {
                "task": event.task,
                "epoch": event.epoch,
                "steps": m.steps.tolist(),
                "seconds": round(event.seconds, 3),
                "loss": _plain(m.loss),
                "val_accuracy": _plain(m.valid_accuracy),
                "val_loss": _plain(m.valid_loss),
                "lr_scale": _plain(m.lr_scale),
            }
            if m.penalty is not None:
                line["penalty"] = _plain(m.penalty)
            self._append(line)
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
        """Drops lines of epochs and tasks that will run again, and cut-off lines."""
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
