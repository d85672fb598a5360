"""A problem that trains in a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from jaxcl.contract import Strategy, strategy
from jaxcl.data.scenarios import make_stream
from jaxcl.data.source import Source
from jaxcl.nn import models
from jaxcl.training.plan import Plan
from jaxcl.training.problem import Problem

TASKS, BATCH = 3, 8


def small_source() -> Source:
    """Six classes of noisy 4 × 4 images, small enough to train on in a test."""
    rng = np.random.default_rng(0)
    centre = rng.integers(40, 216, (6, 4, 4, 1))

    def draw(n):
        y = np.arange(n) % 6
        x = np.clip(centre[y] + rng.normal(0, 30, (n, 4, 4, 1)), 0, 255)
        return x.astype(np.uint8), y.astype(np.int32)

    train_x, train_y = draw(300)
    test_x, test_y = draw(120)
    names = tuple("abcdef")
    return Source(
        "blobs", train_x, train_y, test_x, test_y, names, 255, (0.5,), (0.25,)
    )


def small_problem(
    make_strategy: Callable[..., Strategy] = lambda setup: strategy(),
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    optimizer: optax.GradientTransformation | None = None,
    model: Callable[[int], Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    joint: bool = False,
    seed_mode: str = "auto",
    **stream: Any,
) -> Problem:
    """A `Problem` that trains in a second: two of `small_source`'s classes per task.

    Args:
      make_strategy: ``(setup) -> Strategy``; by default fine-tuning.
      seeds: the seeds of the run.
      optimizer: by default SGD at 0.1.
      model: ``number of outputs -> model``; by default an MLP of 16 units.
      plan: fields of `Plan`; by default two epochs with batches of 8.
      joint: as in `Problem`.
      seed_mode: as in `Problem`.
      **stream: options of `jaxcl.data.scenarios.make_stream`; by default three tasks,
        split and task-incremental, with a fifth of each for validation.

    Returns:
      The `Problem`, for `jaxcl.training.protocol.run`.
    """
    options = dict(kind="split", scenario="task", num_tasks=TASKS, valid_fraction=0.2)
    data = make_stream(small_source(), seeds, **(options | stream))
    build_model = model or (lambda outputs: models.MLP((16,), outputs))
    return Problem(
        model=build_model(data.num_outputs),
        stream=data,
        seeds=seeds,
        make_strategy=make_strategy,
        optimizer=optimizer or optax.sgd(0.1),
        plan=Plan(**({"epochs": 2, "batch_size": BATCH} | dict(plan or {}))),
        joint=joint,
        seed_mode=seed_mode,
    )
