"""Writes a run's numbers to TensorBoard or Weights & Biases, besides its folder.

Each of these places is a `Writer`; a new place is one class here and one line in
`WRITERS`. Numbers are written against the number of epochs since the run began. Each is
written once, even if the run is interrupted and resumed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from jaxcl.training.protocol import EpochDone, TaskDone

from .. import config as configs


class Writer(Protocol):
    """Writes numbers to a place."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers by their names, "group/name"."""
        ...

    def close(self) -> None:
        """Writes what is left; no call follows."""
        ...


class Place(NamedTuple):
    """A place that numbers can be written to.

    Attributes:
      package: the Python package that it needs.
      open: ``(config, folder, epochs done before) -> Writer``.
    """

    package: str
    open: Callable[[ConfigDict, Path, int], Writer]


class _TensorBoard:
    def __init__(self, config: ConfigDict, folder: Path, done: int):
        from tensorboardX import SummaryWriter

        # A resumed run writes again what it had written after its last saved state.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # The run's log, which says what is not written again, may be ahead otherwise.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, config: ConfigDict, folder: Path, done: int):
        import wandb

        own = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxcl"),
            group=config.name,
            name=configs.method_of(config).label,
            id=own,
            resume="allow",
            reinit="create_new",  # settings of a sweep are open at the same time
            dir=str(folder),
            config=configs.spelled_out(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


WRITERS = {
    "tensorboard": Place("tensorboardX", _TensorBoard),
    "wandb": Place("wandb", _Wandb),
}


def require(write_to: str) -> None:
    """Refuses places that numbers cannot be written to.

    Raises:
      ValueError: a place is unknown, or its package is not installed.
    """
    for name in _named(write_to):
        if name not in WRITERS:
            raise ValueError(
                f"write_to must be of {', '.join(WRITERS)}, with commas between, got "
                f"{name!r}"
            )
        package = WRITERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f'write_to={name} needs {package}: pip install "jaxcl[{name}]"'
            )


def opened(config: ConfigDict, folder: Path, done: int) -> list[Writer]:
    """The writers that a config names, for a run with some epochs done.

    Raises:
      ValueError: as `require`.
    """
    require(config.write_to)
    return [WRITERS[n].open(config, folder, done) for n in _named(config.write_to)]


def scalars_of(event: EpochDone | TaskDone, seeds: Sequence[int]) -> dict[str, float]:
    """The numbers of an event, name -> number: for each seed, and the mean over seeds.

    Numbers that are not finite are left out.
    """
    found: dict[str, float] = {}

    def add(name: str, values: Any) -> None:
        values = np.asarray(values, float)
        own = {f"seed_{seed}": v for seed, v in zip(seeds, values, strict=True)}
        known = values[np.isfinite(values)]
        own["mean"] = known.mean() if known.size else np.nan
        found.update(
            {f"{name}/{k}": float(v) for k, v in own.items() if np.isfinite(v)}
        )

    if isinstance(event, EpochDone):
        m = event.metrics
        add("loss", m.loss)
        add("val_accuracy", m.valid_accuracy)
        add("val_loss", m.valid_loss)
        if m.penalty is not None:
            add("penalty", m.penalty)
        return found
    after = event.accuracy[:, event.task]
    for task in range(event.task + 1):
        add(f"accuracy_task_{task + 1}", after[:, task])
    add("accuracy_so_far", after[:, : event.task + 1].mean(axis=1))
    for quantity, layers in event.report.items():
        for layer, values in layers.items():
            add(f"{quantity}/{layer}", values[:, event.task])
    return found


def _named(write_to: str) -> list[str]:
    return [name.strip() for name in write_to.split(",") if name.strip()]
