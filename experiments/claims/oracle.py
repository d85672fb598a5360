"""Oracle heads: what a linear classifier can read from a run's final features.

They are a diagnostic, not a method: they are fitted to the training data of all
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import features
from jaxcl.ops import discriminant

from ..runs.opened import Run, load_run
from .claim import Array

HEADS = ("ridge", "ncm", "slda")
SHRINKAGE = 1e-4
CHUNK = 500
"""Images per forward pass: a convolution's windows take a hundred times their size."""


def oracle_heads(folder: Path) -> Mapping[str, Array]:
    """Accuracy of each of `HEADS` on a run's final features.

    The features are what the classifier reads after the last task. The heads choose
    among the classes of all tasks, whether the run was told the task or not.

    Args:
      folder: of a run that has kept its last weights.

    Returns:
      Accuracies in per cent on the test data of all tasks, [S]; NaN: failed seed.

    Raises:
      FileNotFoundError: the run has not kept its weights.
    """
    run = load_run(folder)
    healthy = [status == "ok" for status in run.result.status]
    found: dict[str, list[float]] = {name: [] for name in HEADS}
    for seed, well in zip(run.seeds, healthy, strict=True):
        scores = _of_seed(run, seed) if well else dict.fromkeys(HEADS, np.nan)
        for name in HEADS:
            found[name].append(100 * scores[name])
    return {name: np.array(values) for name, values in found.items()}


def _of_seed(run: Run, seed: int) -> dict[str, float]:
    """Accuracy in [0, 1] of each head, for one seed."""
    x, y = _features(run, seed, "train")
    held = _features(run, seed, "valid")
    test = _features(run, seed, "test")
    classes = run.problem.stream.num_outputs
    ridge = features.ridge_probe(x, y, *held, num_classes=classes)
    ncm = features.ncm(x, y, num_classes=classes)
    return {
        "ridge": float(features.accuracy(ridge, *test)),
        "ncm": float(features.accuracy(ncm, *test)),
        "slda": _slda(x, y, *test, classes),
    }


def _slda(x, y, test_x, test_y, classes: int) -> float:
    start = discriminant.no_means(classes, x.shape[1])
    means, rows = discriminant.absorb(start, x, y, jnp.ones(len(x)))
    scatter = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
    head = discriminant.discriminant(means, scatter, SHRINKAGE)
    right = discriminant.logits(head, test_x).argmax(-1) == test_y
    return float(right.mean())


def _features(run: Run, seed: int, part: str) -> tuple[jax.Array, jax.Array]:
    """The classifier's inputs for all tasks' examples [N, D], and their classes [N]."""
    last = run.num_tasks - 1
    weights = run.weights(seed, last)
    found, labels = [], []
    for task in range(run.num_tasks):
        x, y = run.data(seed, task, part)
        for i in range(0, len(x), CHUNK):
            out = run.apply(weights, x[i : i + CHUNK], task, current=last)
            found.append(np.asarray(out.taps["head"]))
        labels.append(y)
    return jnp.asarray(np.concatenate(found)), jnp.asarray(np.concatenate(labels))
