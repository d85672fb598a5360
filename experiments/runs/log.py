"""metrics.jsonl, and which of a problem's seeds are whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

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
    """metrics.jsonl: a line per epoch and task, each written once, resumed or not."""

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
