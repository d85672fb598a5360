"""A run's weights on disk: at the end, after every task, or after every epoch.

The folder ``weights`` gets one file per moment, with the arrays of all seeds, [S, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.inputs import context
from jaxcl.predicting import make_forward
from jaxcl.training.observation import forward_reads_state, strategy_of
from jaxcl.training.problem import Problem, setup_of
from jaxcl.training.run_state import Moment
from jaxcl.training.seeds import SeedMesh
from jaxcl.training.state import SeedState
from jaxcl.types import Output, Params, PyTree, State

from . import arrays


class Weights(NamedTuple):
    """What a forward pass needs, of one seed, or of all seeds with a leading [S]."""

    params: Params
    model_state: PyTree
    strategy_state: State | None  # None: the strategy's forward pass does not read it
    task: int | None = None  # the last task they were trained on, −1: none; as read
    seed: int | None = None  # of the run, as read; None: not known


def file_of(workdir: Path, task: int, epoch: int | None = None) -> Path:
    """The file of a task's end, of one of its epochs, or of the start (task −1)."""
    if task < 0:
        name = "untrained"
    else:
        name = f"task_{task:03d}" + ("" if epoch is None else f"_epoch_{epoch:03d}")
    return workdir / "weights" / f"{name}.npz"


class Keeper:
    """Watches a run and writes the weights that the config asks to keep."""

    def __init__(
        self,
        problem: Problem,
        mesh: SeedMesh,
        keep: str,
        parts: Sequence[tuple[Path, slice]],
        write: bool,
    ):
        """Keeps weights for each part of a run's seeds.

        Args:
          problem: what runs.
          mesh: where it runs.
          keep: as `config.keep_weights`.
          parts: each part's folder, and its rows among all seeds.
          write: False in processes that only take part in gathering.
        """
        self.keep, self.parts, self.write = keep, parts, write
        self.last = problem.stream.num_tasks - 1
        self.mesh = mesh
        self.reads_state = forward_reads_state(problem)

    def __call__(self, moment: Moment) -> None:
        if not self._wanted(moment):
            return
        held = self.mesh.gather(_weights(moment.trained, self.reads_state))
        if not self.write:
            return
        epoch = moment.epoch if moment.what == "epoch" else None
        for workdir, rows in self.parts:
            own = jax.tree.map(lambda leaf, rows=rows: leaf[rows], held)
            arrays.save(file_of(workdir, moment.task, epoch), named(own))

    def _wanted(self, moment: Moment) -> bool:
        if moment.what == "end":
            return self.keep in ("tasks", "epochs") or moment.task == self.last
        if moment.what == "epoch":
            return self.keep == "epochs"
        return moment.what == "start" and self.keep != "last"


def _weights(trained: SeedState, reads_state: bool) -> Weights:
    state = trained.strategy_state if reads_state else None
    return Weights(trained.params, trained.model_state, state)


def named(weights: Weights) -> dict[str, np.ndarray]:
    """Path in the tree -> array."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def read(file: Path, seed: int, problem: Problem, like: SeedState) -> Weights:
    """One seed's weights.

    Args:
      file: from `file_of`.
      seed: its position among the run's seeds.
      problem: what ran.
      like: shapes of one seed's state.

    Raises:
      FileNotFoundError: the weights were not kept.
      ValueError: the file is broken or of another network.
    """
    found = arrays.load(file)
    wanted = _weights(like, forward_reads_state(problem))
    leaves, structure = jax.tree_util.tree_flatten_with_path(wanted)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    if set(names) != found.keys():
        raise ValueError(f"{file} holds the weights of another network or method")
    taken = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        own = found[name][seed]
        if own.dtype.kind == "V":  # an .npz stores bfloat16 and the like as raw bytes
            own = own.view(leaf.dtype)
        if own.shape != leaf.shape or own.dtype != leaf.dtype:
            raise ValueError(
                f"{file}: {name} is {own.dtype}{list(own.shape)} there, the run's "
                f"config makes it {leaf.dtype}{list(leaf.shape)}"
            )
        taken.append(jax.numpy.asarray(own))
    return jax.tree.unflatten(structure, taken)


def require_of(weights: Weights, seed: int) -> None:
    """Refuses weights of another seed, whose data, classes or angles may be others.

    Raises:
      ValueError: they are of another seed; those of none known pass.
    """
    if weights.seed not in (None, seed):
        raise ValueError(
            f"these weights are of seed {weights.seed}, asked for is seed {seed}: take "
            f"weights(seed={seed}, ...), or weights._replace(seed=None) if this is "
            "meant"
        )


def forward_of(problem: Problem, like: SeedState) -> Callable[..., Output]:
    """A run's forward pass, compiled: ``(weights, x, task, current) -> Output``.

    Args:
      problem: what ran.
      like: shapes of one seed's state.
    """
    setup = setup_of(problem)
    forward = make_forward(setup, strategy_of(problem, setup))

    @jax.jit
    def run(weights: Weights, x, task, current) -> Output:
        batch = context(x, jnp.zeros(len(x), int), task=task).batch
        # A state that the forward pass does not read was not kept: zeros will do.
        state = weights.strategy_state
        if state is None:
            shapes = like.strategy_state
            state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        given = (weights.params, weights.model_state, state)
        return forward(*given, batch, jnp.asarray(current, jnp.int32))

    return run
