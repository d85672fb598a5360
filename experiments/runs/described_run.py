"""What a run's config describes, made again: the problem and the tasks' examples."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import jax
import numpy as np
from numpy.typing import NDArray

from jaxcl.schema import Range, broken
from jaxcl.training.fingerprint import fingerprint
from jaxcl.training.probing import fewest, sample
from jaxcl.training.problem import Problem

from .. import config as configs
from . import folders, results
from .recorded_run import Recorded


class Described(Recorded):
    """A run's folder, and the problem and data that its config describes."""

    @cached_property
    def problem(self) -> Problem:
        """What the config describes, made when first used: it reads the data.

        Warns if the data, or the user's own files, are others than when the run ended.
        """
        with self._telling_version():
            problem = configs.problem(self.config)
            own = folders.identity((folders.Part(self.config, self.workdir),))
            now = fingerprint(problem, own)
        folders.warn_if_changed(self.workdir / "checkpoints", now)
        return problem

    @cached_property
    def num_tasks(self) -> int:
        if (self.workdir / results.FILE_NAME).is_file():
            return len(self.result.task_names)
        return self.problem.stream.num_tasks

    def data(
        self, seed: int, task: int, part: str = "test", measured: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """A task's examples as the network gets them.

        Args:
          seed: one of `seeds`; it determines permutations, classes and split.
          task: from 0.
          part: "train", "valid" or "test".
          measured: those that ``config.features`` measures, drawn at random, at most
            ``config.feature_examples`` and as many as every task has.

        Returns:
          x [N, ...], normalised, and y [N], among the network's K outputs.

        Raises:
          ValueError: no such seed, task or part.
        """
        self._require(task)
        if part not in ("train", "valid", "test"):
            raise ValueError(f"part must be train, valid or test, got {part!r}")
        stream, place = self.problem.stream, self._place(seed)
        mine = jax.tree.map(lambda leaf: leaf[place], stream.per_seed)
        data = stream.view(stream.base, mine, part, task)
        if measured:
            most = min(self.config.feature_examples, fewest(self.problem, part))
            batch = sample(data, most)
        else:
            batch = data.take(np.arange(int(data.size)))
        return np.asarray(batch.x), np.asarray(batch.y)

    def class_names(self, seed: int, task: int) -> dict[int, str]:
        """Output -> name of the class that it stands for in a task, as `data` counts.

        Args:
          seed: one of `seeds`; the order of classes may be its own.
          task: from 0.
        """
        self._require(task)
        stream, place = self.problem.stream, self._place(seed)
        label = np.asarray(stream.per_seed.label)[place, task]
        return {int(k): stream.class_names[c] for c, k in enumerate(label) if k >= 0}

    def _require(self, task: int, least: int = 0) -> None:
        last = self.num_tasks - 1
        if broken(task, Annotated[int, Range(least, last)]):
            raise ValueError(f"task must lie in {least}..{last}, got {task!r}")
