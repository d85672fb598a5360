"""Measures features while a run trains, and resumes after an interruption."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jaxcl import features
from jaxcl.fields import FIELDS
from jaxcl.training.instruments import Instruments, make_instruments
from jaxcl.training.problem import Problem, setup_of
from jaxcl.training.run_state import Moment
from jaxcl.training.seeds import SeedMesh
from jaxcl.types import PyTree

from . import arrays, measured

Held = dict[str, NDArray]
"""layer -> features or weights [S, ...]"""


def asked(config: ConfigDict) -> tuple[str, ...]:
    """What ``config.features`` asks for."""
    return _names(config.features)


def require(config: ConfigDict, problem: Problem) -> None:
    """Refuses a config that asks for unknown measurements; compiles nothing.

    Raises:
      ValueError: an unknown quantity or layer; too few examples; a field that has no
        effect.
    """
    if asked(config):
        _instruments(config, problem, SeedMesh(len(problem.seeds), problem.seed_mode))
        return
    for name in ("feature_layers", "feature_examples"):
        if config[name] != FIELDS[name].default:
            raise ValueError(
                f"config.{name} is for config.features, which asks for none; got "
                f"{config[name]!r}"
            )


def _instruments(config: ConfigDict, problem: Problem, mesh: SeedMesh) -> Instruments:
    return make_instruments(
        problem,
        mesh,
        names=asked(config),
        layers=_names(config.feature_layers),
        examples=config.feature_examples,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Recorder:
    """Watches a run, measures, and writes `features.npz` after each measurement.

    The folder ``features`` beside it gets what later measurements are compared with:
    the features of the first task's examples after each task, and the weights after the
    first task.
    """

    def __init__(
        self,
        config: ConfigDict,
        problem: Problem,
        mesh: SeedMesh,
        parts: Sequence[tuple[Path, slice]],
        write: bool,
    ):
        """Measures what `config` asks for.

        Args:
          config: of the run.
          problem: what runs.
          mesh: where it runs.
          parts: folder and seeds of each part of the run.
          write: False in processes that only compute.

        Raises:
          ValueError: the config asks for an unknown measurement.
        """
        self.names, self.mesh, self.parts = asked(config), mesh, parts
        self.write, self.tasks = write, problem.stream.num_tasks
        self.use = _instruments(config, problem, mesh)
        self.layers = setup_of(problem).layers
        self.compares = "cka" in self.names or "drift" in self.names
        self.found: measured.Measured = {}
        self.then: dict[int, Held] = {}
        self.first_weights: Held = {}
        self._take_up()

    def __call__(self, moment: Moment) -> None:
        if not self._wanted(moment):
            return
        began = time.monotonic()
        # Each device decomposes its own matrices, so more BLAS threads would only wait.
        # NaN is no error here: it marks what was not measured.
        with threadpool_limits(1, "blas"), jax.debug_nans(False):
            if moment.what in ("start", "end"):
                self._after(moment)
            if moment.what == "epoch" and "rank" in self.names:
                self._rank_of_epoch(moment)
            if "conflict" in self.names and moment.task > 0:
                if moment.what == "begin":
                    self._conflict(moment, "start", 0)
                elif moment.what == "epoch" and moment.epoch == 0:
                    self._conflict(moment, "first epoch", 1)
        seconds = self.found.setdefault(measured.SECONDS, np.zeros(self.tasks + 1))
        seconds[moment.task + 1] += time.monotonic() - began
        if self.write:
            self._save(moment)

    def _wanted(self, moment: Moment) -> bool:
        if moment.what in ("start", "end"):
            return True
        conflict = "conflict" in self.names and moment.task > 0
        if moment.what == "begin":
            return conflict
        return "rank" in self.names or (conflict and moment.epoch == 0)

    def _rank_of_epoch(self, moment: Moment) -> None:
        shared = (moment.base, self._number(moment.task))
        ranks = self.use.ranks(moment.trained, moment.mine, shared)
        for layer, values in self.mesh.gather(ranks).items():
            name = f"effective_rank_by_epoch/{layer}"
            measured.put(self.found, name, (moment.task, moment.epoch), values)

    def _after(self, moment: Moment) -> None:
        """Measures the network before the first task or after a task."""
        trained, current = moment.task + 1, max(moment.task, 0)
        # At the start and at the end all tasks; in between those seen and the next one.
        ends = trained in (0, self.tasks)
        count = self.tasks if ends else trained + 1
        base, current = moment.base, self._number(current)
        shared = (base, self._number(count), current)
        values = self.use.measure(moment.trained, moment.mine, shared)
        for quantity, layers in self.mesh.gather(values).items():
            for layer, value in layers.items():
                measured.put(self.found, f"{quantity}/{layer}", (trained,), value)
        if self.compares:
            now = self.use.first(moment.trained, moment.mine, (base, current))
            self.then[trained] = self.mesh.gather(now)
            self._compare(trained, now)
        if "drift" in self.names:
            self._weights(trained, self.mesh.gather(moment.trained.params.net))

    def _compare(self, trained: int, now: PyTree) -> None:
        # Joint training on all tasks at once has no features from in between.
        for past in sorted(i for i in self.then if i <= trained):
            then = self.mesh.spread(self.then[past])
            both = self.mesh.gather(self.use.compare(now, then, ()))
            for layer, values in both.get("cka", {}).items():
                for at in ((trained, past), (past, trained)):
                    measured.put(self.found, f"cka/{layer}", at, values)
            for layer, values in both.get("feature_drift", {}).items():
                if past == 1:
                    name = f"feature_drift/{layer}"
                    measured.put(self.found, name, (trained,), values)

    def _weights(self, trained: int, net: PyTree) -> None:
        now = {layer.name: _flat(net, layer.path[:-1]) for layer in self.layers}
        if trained == 1:
            self.first_weights = now
        for layer, first in self.first_weights.items() if trained else ():
            moved = jax.vmap(features.feature_drift)(first, now[layer])
            measured.put(self.found, f"weight_drift/{layer}", (trained,), moved)

    def _conflict(self, moment: Moment, when: str, epoch: int) -> None:
        given = (moment.mine, moment.cache)
        shared = (moment.base, self._number(moment.task), self._number(epoch))
        found = self.mesh.gather(self.use.conflict(moment.trained, given, shared))
        for quantity, values in found.items():
            measured.put(self.found, f"{quantity}/{when}", (moment.task,), values)

    def _number(self, value: int) -> jax.Array:
        return self.mesh.share(np.int32(value))

    def _save(self, moment: Moment) -> None:
        trained = moment.task + 1
        new = moment.what in ("start", "end")
        for workdir, rows in self.parts:
            own = {
                name: values if name == measured.SECONDS else values[rows]
                for name, values in self.found.items()
            }
            if new and self.compares:
                held = {k: v[rows] for k, v in self.then[trained].items()}
                arrays.save(_file(workdir, f"after_{trained:03d}"), held)
            if new and trained == 1 and self.first_weights:
                held = {k: v[rows] for k, v in self.first_weights.items()}
                arrays.save(_file(workdir, "weights"), held)
            arrays.save(workdir / measured.FILE_NAME, own)

    def _take_up(self) -> None:
        """Loads the measurements of an interrupted run from the folders."""
        folders = [workdir for workdir, _ in self.parts]
        if not all((w / measured.FILE_NAME).is_file() for w in folders):
            return
        self.found = _joined([measured.load(workdir) for workdir in folders])
        for trained in range(self.tasks + 1):
            files = [_file(workdir, f"after_{trained:03d}") for workdir in folders]
            if all(file.is_file() for file in files):
                self.then[trained] = _joined([arrays.load(file) for file in files])
        files = [_file(workdir, "weights") for workdir in folders]
        if all(file.is_file() for file in files):
            self.first_weights = _joined([arrays.load(file) for file in files])


def _file(workdir: Path, name: str) -> Path:
    return workdir / "features" / f"{name}.npz"


def _joined(parts: Sequence[Held]) -> Held:
    return {
        name: parts[0][name]
        if name == measured.SECONDS
        else np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }


def _flat(net: PyTree, path: tuple[str, ...]) -> NDArray:
    for key in path:
        net = net[key]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(net)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
