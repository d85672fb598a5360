"""Shows a run's progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jaxcl.training.protocol import EpochDone, Started, TaskDone

from . import notes

_LINE_EVERY = 10.0  # seconds between plain lines inside a task


class Display:
    """Takes a run's events; use as a context manager."""

    def __init__(
        self,
        label: str,
        num_tasks: int,
        epochs_of: Callable[[int], int | None],
        quiet: bool,
    ):
        self.label, self.num_tasks, self.epochs_of = label, num_tasks, epochs_of
        self._last = 0.0
        self._bar: Progress | None = None
        self._quiet = quiet
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._id = self._bar.add_task(label, total=num_tasks, note="compiling")

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, event: Started | EpochDone | TaskDone) -> None:
        if isinstance(event, Started):
            if event.resumed and event.task >= self.num_tasks:
                self._line("was finished before")
            elif event.resumed:
                self._line(f"goes on at task {event.task + 1}, epoch {event.epoch + 1}")
        elif isinstance(event, EpochDone):
            self._epoch(event)
        else:
            healthy = np.array([s == "ok" for s in event.status])
            trained = event.accuracy[healthy, event.task, : event.task + 1]
            text = f"task {event.task + 1}/{self.num_tasks} done"
            if healthy.any():
                text += f", accuracy on tasks so far {_mean(trained.mean(1)):.2%}"
            if failed := int((~healthy).sum()):
                text += f", {failed} of {len(healthy)} seeds failed"
            self._line(text)
            for note in notes.of_task(event.report, event.task, event.status):
                self._line(note)
            if self._bar:
                self._bar.update(self._id, completed=event.task + 1)

    def _epoch(self, event: EpochDone) -> None:
        m, epochs = event.metrics, self.epochs_of(event.task)
        of = f"/{epochs}" if epochs else ""
        note = f"task {event.task + 1}/{self.num_tasks}, epoch {event.epoch + 1}{of}, "
        note += f"loss {_mean(m.loss):.4f}"
        if not np.isnan(m.valid_accuracy).all():
            note += f", val {_mean(m.valid_accuracy):.2%}"
        if self._bar:
            share = (event.epoch + 1) / epochs if epochs else 0.0
            self._bar.update(self._id, completed=event.task + share, note=note)
        elif time.monotonic() - self._last > _LINE_EVERY:
            self._line(note)

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        if self._quiet:
            return
        if self._bar:
            self._bar.console.print(f"{self.label}: {text}", highlight=False)
        else:
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)


def _mean(per_seed: np.ndarray) -> float:
    """The mean over the seeds that have a value."""
    known = per_seed[~np.isnan(per_seed)]
    return float(known.mean()) if known.size else float("nan")
