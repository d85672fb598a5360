"""What a head in closed form can read from the features that a run has kept."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.features import Probe, lda, ncm, ridge_probe
from jaxcl.heads import head_layers
from jaxcl.ops import discriminant
from jaxcl.training.problem import setup_of

from .kept import require_of
from .opened import Run

SHRINKAGE = 1e-4
CHUNK = 500
"""Images per forward pass: a convolution's windows take a hundred times their size."""


class Features(NamedTuple):
    """The features of one task's images under one seed's weights."""

    x: jax.Array  # float32[N, D]
    y: np.ndarray  # int32[N]


def features(
    run: Run, weights, seed: int, task: int, part: str, current: int | None = None
) -> Features:
    """The classifier's input for a task's images, in evaluation mode.

    Args:
      run, seed, task, part: whose images.
      weights: of that seed.
      current: the last task these weights have trained, by default `task`.
    """
    (head,) = (layer.name for layer in head_layers(setup_of(run.problem)))
    require_of(weights, seed)
    x, y = run.data(seed, task, part)
    parts = [
        run.apply(weights, x[i : i + CHUNK], task, current).taps[head]
        for i in range(0, len(x), CHUNK)
    ]
    return Features(jnp.concatenate(parts).reshape(len(x), -1), y)


def streamed(run: Run, seed: int) -> dict[str, discriminant.LinearHead]:
    """Heads fitted to the features as each task left them, as the strategies do."""
    outputs = run.problem.stream.num_outputs
    means, scatter = None, jnp.zeros(())
    for task in range(run.num_tasks):
        x, y = features(run, run.weights(seed, task), seed, task, "train")
        means = means or discriminant.no_means(outputs, x.shape[1])
        means, rows = _absorb(means, x, jnp.asarray(y))
        scatter = scatter + rows
    assert means is not None  # a stream has a task
    return {
        "NCM": discriminant.nearest_mean(means),
        "SLDA": discriminant.discriminant(means, scatter, SHRINKAGE),
    }


@jax.jit
def _absorb(means, x, y):
    means, rows = discriminant.absorb(means, x, y, jnp.ones(len(x)))
    return means, discriminant.whole_gram(discriminant.half_gram(rows))


def final(run: Run, seed: int, part: str) -> Features:
    """The features of all tasks' images under the weights after the last task."""
    last = run.num_tasks - 1
    weights = run.weights(seed, last)
    found = [features(run, weights, seed, task, part, last) for task in range(last + 1)]
    return Features(
        jnp.concatenate([f.x for f in found]), np.concatenate([f.y for f in found])
    )


def oracles(run: Run, seed: int) -> dict[str, Probe]:
    """Heads fitted to the final features of all tasks' training images."""
    outputs = run.problem.stream.num_outputs
    x, y = final(run, seed, "train")
    held = final(run, seed, "valid")
    return {
        "oracle NCM": ncm(x, y, num_classes=outputs),
        "oracle SLDA": lda(x, y, num_classes=outputs, shrinkage=SHRINKAGE),
        "oracle probe": ridge_probe(x, y, *held, num_classes=outputs),
    }
