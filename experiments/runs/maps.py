"""Maps of where a run's networks look, for every seed and after each task."""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxcl.features import occlusion, rank_correlation
from jaxcl.training.problem import Problem

from . import arrays, machine
from .opened import Run

SAVE_EVERY = 10.0  # seconds


class Maps(NamedTuple):
    """The maps of one run, for test images of task 1."""

    maps: NDArray[np.float32]  # [S, T, N, h, w]
    chance: NDArray[np.float32]  # [S, T, N] probability of the true class


def require_two(rows: Sequence[str]) -> None:
    """Refuses any number of rows except two."""
    if len(rows) != 2:
        raise machine.UsageError(f"two methods are compared, got {', '.join(rows)}")


def require_images(problem: Problem, where: object) -> None:
    """Refuses data that are no images, and networks that see a batch as a whole.

    Args:
      problem: of a run.
      where: the run, for the message.

    Raises:
      UsageError: a map of one image does not exist here.
    """
    if getattr(problem.model, "mixes_examples", False):
        raise machine.UsageError(
            f"{where}: the network normalises by the batch, its answer to an image "
            "depends on others; use another --config.model.norm"
        )
    if len(shape := problem.stream.input_shape) != 3:
        raise machine.UsageError(
            f"{where}: maps need images [N, H, W, C], the data are [N, "
            f"{', '.join(map(str, shape))}]"
        )


def require_pair(runs: Mapping[str, Run]) -> bool:
    """Refuses runs whose maps cannot be compared.

    Returns:
      Whether all seeds have the same images and classes.

    Raises:
      UsageError: there are not two runs; they differ in seeds, tasks or images; a
        network's answer to an image depends on other images.
    """
    require_two(list(runs))
    first, second = runs.values()
    for run in runs.values():
        require_images(run.problem, run.workdir)
        if (run.seeds, run.num_tasks) != (first.seeds, first.num_tasks):
            raise machine.UsageError(
                f"{first.workdir} and {run.workdir} differ in seeds or tasks"
            )
    same = [_images(run, seed) for run in (first, second) for seed in run.seeds]
    for mine, theirs in zip(same, same[len(first.seeds) :], strict=False):
        if not _equal(mine, theirs):
            raise machine.UsageError(
                f"{first.workdir} and {second.workdir} differ in the images of task 1"
            )
    return all(_equal(same[0], other) for other in same[1:])


def _images(run: Run, seed: int) -> tuple[NDArray, NDArray]:
    return run.data(seed, 0, "test")


def _equal(a: tuple[NDArray, NDArray], b: tuple[NDArray, NDArray]) -> bool:
    return all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))


def window_of(shape: Sequence[int]) -> int:
    """The side of the covered square, a quarter of the side of images [N, H, W, C]."""
    return max(1, min(shape[1:3]) // 4)


def measure(
    runs: Mapping[str, Run], seeds: Sequence[int], places: Sequence[int], file: Path
) -> tuple[dict[str, Maps], float]:
    """The maps of every row, seed and task; maps that the file holds are not repeated.

    Args:
      runs: row -> its run.
      seeds: which of the runs' seeds.
      places: positions of the images among the test images of task 1.
      file: keeps the maps measured so far.

    Returns:
      Row -> its maps, and the seconds they took, including those of earlier calls.
    """
    held = arrays.load(file) if file.is_file() else {}
    before = float(held.get("seconds", 0.0))
    started = saved = time.monotonic()
    found: dict[str, NDArray] = {}
    jobs = [
        (row, run, seed, task)
        for row, run in runs.items()
        for seed in seeds
        for task in range(run.num_tasks)
    ]
    measures = {row: _maps_of(run) for row, run in runs.items()}
    for done, (row, run, seed, task) in enumerate(jobs, start=1):
        weights = run.weights(seed, task)
        x, y = (part[np.asarray(places)] for part in _images(run, seed))
        digest = hashlib.sha256()
        # The name has the seed: as a leaf, too, it would lose maps made earlier.
        for leaf in (*jax.tree.leaves(weights._replace(seed=None)), x, y):
            digest.update(np.asarray(leaf).tobytes())
        name = f"{row}/{seed}/{task}/{digest.hexdigest()}"
        for what in ("maps", "chance"):
            if f"{what}/{name}" in held:
                found[f"{what}/{name}"] = held[f"{what}/{name}"]
        if f"maps/{name}" not in found:
            maps, chance = measures[row](weights, x, y, task)
            found |= {f"maps/{name}": maps, f"chance/{name}": chance}
        now = time.monotonic()
        if now - saved > SAVE_EVERY or done == len(jobs):
            seconds = np.array(before + now - started)
            arrays.save(file, {**held, **found, "seconds": seconds})
            print(f"maps: {done} of {len(jobs)} networks", file=sys.stderr)
            saved = now

    def stacked(row: str, run: Run, what: str) -> NDArray:
        own = [v for name, v in found.items() if name.startswith(f"{what}/{row}/")]
        return np.stack(own).reshape(len(seeds), run.num_tasks, *own[0].shape)

    rows = {
        row: Maps(stacked(row, run, "maps"), stacked(row, run, "chance"))
        for row, run in runs.items()
    }
    return rows, before + time.monotonic() - started


def _maps_of(run: Run):
    """Makes the function ``(weights, x, y, task) -> maps, chance`` for a run."""
    stream = run.problem.stream

    @jax.jit
    def both(weights: Any, x: jax.Array, y: jax.Array, mask: jax.Array, task: Any):
        def score(images: jax.Array) -> jax.Array:
            logits = run.apply(weights, images, 0, current=task).logits
            known = jax.nn.log_softmax(jnp.where(mask, logits, -jnp.inf))
            return jnp.take_along_axis(known, y[:, None], 1)[:, 0]

        window = window_of(x.shape)
        maps = occlusion(score, x, window=window, stride=max(1, window // 2))
        return maps, jnp.exp(score(x))

    def measured(weights: Any, x: NDArray, y: NDArray, task: int):
        mask = stream.logit_mask[0 if stream.mask_by == "example" else task]
        maps, chance = both(weights, x, y, mask, task)
        return np.asarray(maps, np.float32), np.asarray(chance, np.float32)

    return measured


def agreement(a: NDArray, b: NDArray) -> NDArray[np.float32]:
    """The rank correlation of each pair of maps [..., h, w]; NaN if one is flat."""
    return np.asarray(jax.jit(rank_correlation)(a, b))


def numbers(maps: Mapping[str, np.ndarray], alike: bool) -> dict[str, Any]:
    """Mean agreements after each task, over images and seeds.

    Args:
      maps: row -> its maps [S, T, N, h, w]; two rows.
      alike: whether all seeds have the same images.

    Returns:
      "between_methods", and per row "with_task_1", "between_seeds" and "other_image".
      Each is [T], None where all maps are flat, and empty if there is no pair.
    """
    first, second = maps.values()
    pairs = list(itertools.combinations(range(len(first)), 2)) if alike else []
    # An image half of the images away is of another class if they are sorted by class.
    half = first.shape[2] // 2

    def between(m: np.ndarray) -> list[float | None]:
        if not pairs:
            return []
        return _means(np.stack([agreement(m[i], m[j]) for i, j in pairs]))

    def with_first(m: np.ndarray) -> np.ndarray:
        return agreement(np.broadcast_to(m[:, :1], m.shape), m)

    return {
        "with_task_1": {row: _means(with_first(m)) for row, m in maps.items()},
        "between_methods": _means(agreement(first, second)),
        "between_seeds": {row: between(m) for row, m in maps.items()},
        "other_image": {
            row: _means(agreement(m, np.roll(m, half, axis=2)))
            for row, m in maps.items()
        },
    }


def _means(values: np.ndarray) -> list[float | None]:
    """[S, T, N] -> means [T]; flat maps, which have no ranks, are left out."""
    known = np.isfinite(values)
    count = known.sum((0, 2))
    total = np.where(known, values, 0).sum((0, 2))
    return [float(t / n) if n else None for t, n in zip(total, count, strict=True)]
