"""A run opened again: its weights, data, network, results and measurements."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.heads import mask_logits
from jaxcl.strategies import label
from jaxcl.training.evaluation import require_apart
from jaxcl.training.evaluation import told as as_told
from jaxcl.training.observation import shapes_of_seed, taps_of
from jaxcl.training.problem import setup_of
from jaxcl.types import Output

from . import kept
from .described_run import Described
from .kept import Weights


class Run(Described):
    """The content of a run's folder; see `load_run`.

    Attributes:
      workdir: the folder.
      config: the run's config, with all fields.
      problem: what the config describes; ``problem.stream`` has the tasks.
      seeds: the run's seeds, as the methods below take them.
      num_tasks: T; tasks count from 0.

    What was recorded needs neither the data nor the code of the model; ``problem``, and
    weights, data and the forward pass with it, do: a DataError or a ValueError says
    what is missing.
    """

    def __repr__(self) -> str:
        rows = f"{self.config.name}/{label(self.config.row or self.config.strategy)}"
        return f"<run {rows}: {self.num_tasks} tasks, seeds {list(self.seeds)}>"

    def weights(self, seed: int, task: int, epoch: int | None = None) -> Weights:
        """The weights after a task, after one of its epochs, or before all tasks.

        Args:
          seed: one of `seeds`.
          task: from 0; −1 is the untrained network.
          epoch: of the task, from 0; None: the task's end, after the best weights were
            loaded and the method has consolidated.

        Returns:
          A `Weights` of that seed, for `apply`.

        Raises:
          ValueError: no such seed or task; weights of another network.
          FileNotFoundError: the run did not keep them.
        """
        self._require(task, least=-1)
        if task == -1 and epoch is not None:
            raise ValueError(f"the untrained network has no epochs, got epoch={epoch}")
        file = kept.file_of(self.workdir, task, epoch)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such weights; the run was told "
                f"--config.keep_weights={self.config.keep_weights} (last: after the "
                "last task, tasks: after each and untrained, epochs: after each epoch "
                "too)"
            )
        found = kept.read(file, self._place(seed), self.problem, self._shapes)
        return found._replace(task=task, seed=seed)

    def apply(
        self, weights: Weights, x: Any, task: int, current: int | None = None
    ) -> Output:
        """The network's forward pass in evaluation mode, including the method's part.

        Args:
          weights: of one seed, whose `data` x is: arrays do not tell their seed.
          x: float[N, ...], in one batch.
          task: the examples' task, from 0.
          current: the last task trained, by default that of the weights; it matters
            only if the method's forward pass reads it.

        Returns:
          An `Output`: ``logits`` [N, K] of all tasks' outputs (`predict` gives those in
          play), and ``taps``, each layer's INPUT by its name: ``taps["head"]`` is what
          the classifier reads. `measured` and features.txt call a layer's output by
          its name; `features` gives that.
        """
        current = self._current(weights, task, current)
        x, like = jnp.asarray(x), setup_of(self.problem).example.shape[1:]
        if x.shape[1:] != like or not len(x):
            raise ValueError(f"x must be [N, *{list(like)}], got {list(x.shape)}")
        return self._forward(weights._replace(task=None, seed=None), x, task, current)

    def features(
        self, weights: Weights, seed: int, task: int, part: str = "test"
    ) -> dict[str, jax.Array]:
        """Each layer's output, after nonlinearity and pooling, as the run measures it.

        Args:
          weights: of the same seed.
          seed, task, part: whose examples: ``data(seed, task, part, measured=True)``.

        Returns:
          Layer -> [N, ...], under the names of `measured`.

        Raises:
          ValueError: as `accuracy`; a network without features.
        """
        kept.require_of(weights, seed)
        x, _ = self.data(seed, task, part, measured=True)
        current = None if weights.task is None else max(weights.task, 0)
        taps = self.apply(weights, x, task, current).taps
        found = taps_of(setup_of(self.problem))
        return {layer: taps[tap] for layer, tap in found.items()}

    def predict(
        self,
        weights: Weights,
        x: Any,
        task: int,
        current: int | None = None,
        told: bool = False,
    ) -> jax.Array:
        """Logits of the outputs in play; ``.argmax(-1)`` is the class answered.

        Args:
          weights, x, task, current: as for `apply`; class-incremental, the classes of
            the tasks up to ``current`` are in play.
          told: class-incremental, the classes of the examples' task alone are in play.

        Returns:
          float[N, K]; outputs that are not in play have the lowest finite value.
        """
        setup = setup_of(self.problem)
        if told:
            require_apart(self.problem.stream)
            setup = as_told(setup)
        current = self._current(weights, task, current)
        logits = self.apply(weights, x, task, current).logits
        of = jnp.full(len(x), task)
        return mask_logits(setup, logits, of, jnp.asarray(current, jnp.int32))

    def accuracy(
        self,
        weights: Weights,
        seed: int,
        task: int,
        current: int | None = None,
        part: str = "test",
        told: bool = False,
    ) -> float:
        """The share of a task's examples whose class has the largest logit in play.

        Args:
          weights: of the same seed.
          seed: one of `seeds`.
          task: the examples' task, from 0.
          current: the last task trained, by default that of the weights (`task` if
            they are untrained); class-incremental, the classes up to it are in play.
          part: "train", "valid" or "test".
          told: class-incremental, the classes of the examples' task alone are in play.

        Returns:
          In [0, 1]; as in `result.matrix` with the weights and the test data of then,
          if the seed has not failed. NaN if a logit is not finite. All are one batch,
          which a norm of the batch's own statistics sees.

        Raises:
          ValueError: as `data`; weights read for another seed; ``told`` of a run that
            is not class-incremental.
        """
        kept.require_of(weights, seed)
        x, y = self.data(seed, task, part)
        logits = self.predict(weights, x, task, current, told)
        if not jnp.isfinite(logits).all():
            return math.nan
        return float((np.asarray(logits).argmax(1) == y).mean())

    @cached_property
    def _shapes(self):
        return shapes_of_seed(self.problem)

    @cached_property
    def _forward(self):
        return kept.forward_of(self.problem, self._shapes)

    def _current(self, weights: Weights, task: int, given: int | None) -> int:
        if given is None:
            given = task if weights.task in (None, -1) else weights.task
        for each in (task, given):
            self._require(each)
        return given


def load_run(workdir: str | Path) -> Run:
    """Opens a run's folder; see `jaxcl.load_run`."""
    return Run(Path(workdir))
