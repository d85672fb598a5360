"""Claim 11's plane of weights: through pretrained, fine-tuned and joint training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxcl import features
from jaxcl.types import PyTree

from ..runs.landscape import grid_of
from ..runs.machine import UsageError
from ..runs.opened import Run, load_run
from .claim import Array
from .transfer_measures import SOURCE, TARGET, Found, accuracy, of_row

POINTS = 7  # along the longer side
FEW = 250  # at most so many test images of each task


def of_joint(fine_tuned: Callable[[Path], Path | None]) -> Callable[[Path], Found]:
    """Makes the `measure` of joint training, which adds a plane through three networks.

    Args:
      fine_tuned: ``(folder of the joint run) -> folder of the fine-tuned run``.

    Returns:
      A function of a folder. It gives the numbers of `of_row`, and for the first seed:
      ``plane_x`` [X] and ``plane_y`` [Y]; ``plane`` [2, Y, X], accuracy in per cent on
      source and target; ``corners`` [3, 2], the points of the pretrained, the
      fine-tuned and the joint network.
    """

    def measured(folder: Path) -> Found:
        other = fine_tuned(folder)
        if other is None:
            raise UsageError(
                "joint: the plane needs the run fine_tune, which is missing"
            )
        return {**of_row(folder), **_plane(load_run(other), load_run(folder))}

    return measured


def _plane(fine_tuned: Run, joint: Run) -> dict[str, Array]:
    seed = fine_tuned.seeds[0]
    ends = [fine_tuned.weights(seed, task) for task in (SOURCE, TARGET)]
    ends.append(joint.weights(seed, TARGET))
    nets: list[PyTree] = [weights.params.net for weights in ends]
    plane = features.plane_through(*nets)
    corners = np.stack([features.place_in(plane, net).coordinates for net in nets])
    x, y = grid_of(corners, POINTS)
    found, step = np.zeros((2, len(y), len(x))), [1, 1]
    for task in (SOURCE, TARGET):
        step[task] = -(-len(fine_tuned.data(seed, task)[1]) // FEW)
    for i, j in np.ndindex(len(y), len(x)):
        net = features.point_of(plane, jnp.array([x[j], y[i]], jnp.float32))
        at = ends[0]._replace(params=ends[0].params._replace(net=net))
        found[:, i, j] = [
            100 * accuracy(fine_tuned, seed, at, t, every=step[t]) for t in (0, 1)
        ]
    return {"plane_x": x, "plane_y": y, "plane": found, "corners": corners}
