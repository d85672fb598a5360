"""Measures two tasks' accuracy over a plane of weights."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcl import strategies
from jaxcl.features import Plane, point_of

from . import arrays, kept, machine
from .opened import Run

CHUNK = 500  # images per forward pass
FEW = 20  # images that networks are compared on
ALIKE = 1e-3  # allowed difference of logits, as a share of 1 + the largest one
MARGIN = 0.15  # around all that is drawn, as a share of the longer side
SAVE_EVERY = 10.0  # seconds


class Tasks(NamedTuple):
    """The first row's network with any weights, on the first two tasks."""

    accuracy: Callable[[Any], np.ndarray]  # weights -> [2], on the test images
    answers: Callable[[Any, Any], jax.Array]  # weights, x of task 1 -> logits [N, K]


def tasks_of(run: Run, seed: int) -> Tasks:
    """Makes the functions that measure a point of the plane, from a run's network."""
    base, stream = run.weights(seed, 1), run.problem.stream
    if jax.tree.leaves(base.model_state):
        raise machine.UsageError(
            f"{run.workdir}: the network keeps running statistics, which no point of a "
            "plane of weights has; use --config.model.norm=none, batch_current, group "
            "or layer"
        )
    order, data = np.random.default_rng(0), []
    for task in (0, 1):
        x, y = run.data(seed, task, "test")
        # Shuffled: a network that normalises by the batch should not get batches of one
        # class.
        mixed = order.permutation(len(x))
        mask = stream.logit_mask[task if stream.mask_by == "example" else 1]
        data.append((task, x[mixed], y[mixed], mask))

    def logits(net: Any, x: Any, task: int) -> jax.Array:
        weights = base._replace(params=base.params._replace(net=net))
        return run.apply(weights, x, task, current=1).logits

    def share(net: Any, task: int, x: Any, y: Any, mask: Any) -> float:
        right = 0
        for i in range(0, len(x), CHUNK):
            open_ = jnp.where(mask, logits(net, x[i : i + CHUNK], task), -jnp.inf)
            right += int((np.asarray(open_).argmax(1) == y[i : i + CHUNK]).sum())
        return right / len(x)

    return Tasks(
        lambda net: np.array([share(net, *each) for each in data]),
        lambda net, x: logits(net, x, 0),
    )


def require_two_tasks(configs: Sequence[ConfigDict], seed: int | None) -> None:
    """Refuses configs whose runs could have no plane, before they are trained.

    Raises:
      UsageError: a row has one task, or lacks the seed that is asked for.
    """
    for config in configs:
        row, seeds, tasks = config.row, config.seeds, config.data.tasks
        if seed is not None and seed not in seeds:
            raise machine.UsageError(f"{row} has no seed {seed}; its seeds: {seeds}")
        if tasks is not None and tasks[1] - tasks[0] < 2:
            raise machine.UsageError(f"a plane needs two tasks, {row} has {tasks}")


def require_alike(runs: Mapping[str, Run], seed: int, tasks: Tasks) -> None:
    """Refuses a row with another network, or with answers that need more than weights.

    Raises:
      UsageError: the message names the row.
    """
    first = next(iter(runs.values()))
    _require_same_tasks(runs, seed)
    like = jax.tree.map(jnp.shape, first.weights(seed, 1).params.net)
    x = first.data(seed, 0, "test")[0][:FEW]
    for row, run in runs.items():
        weights = run.weights(seed, 1)
        if jax.tree.map(jnp.shape, weights.params.net) != like:
            raise machine.UsageError(
                f"{row} has a network of other weights than {next(iter(runs))}"
            )
        own = run.apply(weights, x, 0, current=1).logits
        apart = float(jnp.abs(own - tasks.answers(weights.params.net, x)).max())
        if not apart <= ALIKE * (1 + float(jnp.abs(own).max())):
            raise machine.UsageError(
                f"{strategies.label(row)} answers by more than its weights (logits "
                f"differ by {apart:.2g}): there is no place for it in the plane"
            )


def _require_same_tasks(runs: Mapping[str, Run], seed: int) -> None:
    (name, first), *others = runs.items()
    outputs = first.problem.stream.logit_mask
    for row, run in others:
        same = np.array_equal(run.problem.stream.logit_mask, outputs) and all(
            np.array_equal(mine, theirs)
            for task in (0, 1)
            for mine, theirs in zip(
                first.data(seed, task), run.data(seed, task), strict=True
            )
        )
        if not same:
            raise machine.UsageError(
                f"{row} has other tasks, images or outputs than {name}: no plane has "
                "both"
            )


def moments(run: Run, seed: int) -> list[Any]:
    """A row's weights after task 1, after each epoch of task 2, and after task 2."""
    held = run.workdir
    found = []
    if kept.file_of(held, 0).is_file():  # a run with joint_once has no task 1
        found.append(run.weights(seed, 0).params.net)
    epoch = 0
    while kept.file_of(held, 1, epoch).is_file():
        found.append(run.weights(seed, 1, epoch).params.net)
        epoch += 1
    return [*found, run.weights(seed, 1).params.net]


def grid_of(drawn: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """A square grid around all that is drawn, with `points` along its longer side.

    Args:
      drawn: [N, 2] coordinates.
      points: at least 2.

    Returns:
      x [X] and y [Y], in equal steps.
    """
    low, high = drawn.min(0), drawn.max(0)
    margin = MARGIN * (high - low).max()
    low, high = low - margin, high + margin
    step = (high - low).max() / (points - 1)
    x, y = (
        low[i] + step * np.arange(int(np.ceil((high[i] - low[i]) / step - 1e-6)) + 1)
        for i in (0, 1)
    )
    return x, y


def measure(
    plane: Plane, x: np.ndarray, y: np.ndarray, tasks: Tasks, file: Path
) -> tuple[np.ndarray, float]:
    """Accuracy at every point of the grid; points that the file holds are not repeated.

    Returns:
      [2, Y, X], and the seconds it took, including those of earlier calls.
    """
    digest = hashlib.sha256()
    for leaf in (*jax.tree.leaves(plane), x, y):
        digest.update(np.asarray(leaf).tobytes())
    of = np.array(digest.hexdigest())
    found, before = np.full((2, len(y), len(x)), np.nan), 0.0
    if file.is_file():
        held = arrays.load(file)
        if held["of"] == of:
            found, before = held["accuracy"], float(held["seconds"])
    at = jax.jit(point_of)
    left = np.argwhere(np.isnan(found[0]))
    started = saved = time.monotonic()
    for done, (i, j) in enumerate(left, start=found[0].size - len(left) + 1):
        found[:, i, j] = tasks.accuracy(at(plane, np.float32([x[j], y[i]])))
        now = time.monotonic()
        if now - saved > SAVE_EVERY or done == found[0].size:
            seconds = np.array(before + now - started)
            arrays.save(file, {"of": of, "accuracy": found, "seconds": seconds})
            print(f"plane: {done} of {found[0].size} points", file=sys.stderr)
            saved = now
    return found, before + time.monotonic() - started
