"""Which outputs of the classifier are in play, and the loss on them.

An output is in play in a step if a loss, a replayed example or a reference gradient of
the step reaches it. The weights of all other outputs are held still: without a
gradient, momentum and weight decay would still move them and change their predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.checks import require
from jaxcl.ops.trees import leaf_names, starts_with, total, wide
from jaxcl.types import Batch, LayerSpec, PyTree, Setup, TaskLoss

SCENARIOS = ("task", "domain", "class")


def scenario_mask(
    scenario: str, num_tasks: int, classes_per_task: list[int]
) -> tuple[jax.Array, str]:
    """The logit mask of a scenario, and which of its rows applies.

    task:   each task has its own; row of the example's task, known at test time.
    domain: all tasks share one set of outputs; every row is full.
    class:  outputs of the tasks seen so far; row of the task in training.

    Args:
      scenario: one of `SCENARIOS`.
      num_tasks: T.
      classes_per_task: number of classes of each task.

    Returns:
      bool[T, K] and "example" or "task", for `Setup.logit_mask` and `Setup.mask_by`.

    Raises:
      ValueError: an unknown scenario; domain-incremental tasks of unequal size.
    """
    known = ", ".join(SCENARIOS)
    require(scenario in SCENARIOS, f"scenario must be one of {known}, got {scenario!r}")
    if scenario == "domain":
        need = "domain-incremental tasks need equally many classes, got"
        require(len(set(classes_per_task)) <= 1, f"{need} {classes_per_task}")
        return jnp.ones((num_tasks, classes_per_task[0]), bool), "example"
    owner = jnp.repeat(
        jnp.arange(num_tasks),
        jnp.array(classes_per_task),
        total_repeat_length=sum(classes_per_task),
    )
    row = jnp.arange(num_tasks)[:, None]
    if scenario == "task":
        return owner[None, :] == row, "example"
    return owner[None, :] <= row, "task"


def mask_logits(
    setup: Setup, logits: jax.Array, example_task: jax.Array, current: jax.Array
) -> jax.Array:
    """Sets the logits [B, K] of outputs not in play to the lowest finite value.

    Not to −∞, which turns gradients into NaN.

    Args:
      setup: gives the mask.
      logits: float[B, K].
      example_task: int32[B].
      current: int32[] the task in training (in evaluation, the last one trained).
    """
    return _masked(setup.logit_mask, setup.mask_by, logits, example_task, current)


def _masked(mask, mask_by, logits, example_task, current):
    rows = mask[example_task] if mask_by == "example" else mask[current][None]
    return jnp.where(rows, logits, jnp.finfo(logits.dtype).min)


def head_mask(setup: Setup, net: PyTree) -> PyTree:
    """A tree like ``net``, True where a leaf belongs to the classifier."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: starts_with(leaf_names(path), setup.heads), net
    )


def head_layers(setup: Setup) -> list[LayerSpec]:
    """The layers that the classifier consists of."""
    return [layer for layer in setup.layers if starts_with(layer.path, setup.heads)]


def require_heads(heads: Sequence[Sequence[Any]], net: PyTree) -> None:
    """Refuses a path of the classifier that matches no parameter, or a whole network.

    Args:
      heads: path prefixes, as in `Setup.heads`.
      net: the network's parameters, or their shapes.

    Raises:
      ValueError: a path matches none; the message lists those that exist.
    """
    leaves = jax.tree_util.tree_leaves_with_path(net)
    paths = [leaf_names(path) for path, _ in leaves]
    several = sum(len(leaf.shape) > 1 for _, leaf in leaves) > 1  # () names them all
    for head in heads:
        if (several and not head) or not any(starts_with(p, [head]) for p in paths):
            known = sorted({"/".join(path[:-1]) or path[-1] for path in paths if path})
            raise ValueError(
                f"heads: {'/'.join(map(str, head))!r} matches no parameter; there are "
                f"{', '.join(known)} (a config names the classifier in model.head)"
            )


def outputs_of(setup: Setup, batch: Batch, current: jax.Array) -> jax.Array:
    """bool[K], the outputs that the loss of a batch is over.

    Args:
      setup: gives the mask.
      batch: [B] examples; those of weight 0 are ignored.
      current: int32[] the task in training.
    """
    real = batch.weight > 0
    if setup.mask_by == "task":
        return setup.logit_mask[current] & real.any()
    return (setup.logit_mask[batch.task] & real[:, None]).any(0)


def with_gradient(setup: Setup, *nets: PyTree) -> jax.Array:
    """bool[K], the outputs whose weights have a gradient in any of the trees.

    Args:
      setup: names the classifier.
      *nets: gradients, trees like the network's parameters.

    Returns:
      True where any element of a head's leaf is not 0, on its axis of the K outputs.

    Raises:
      ValueError: ``setup.heads`` names no leaf that has the K outputs on that axis, or
        only a bias although a kernel has them on another axis.
    """
    outputs = setup.logit_mask.shape[1]
    found: list[jax.Array] = []
    unread: list[str] = []
    kernels = 0

    def look(path, *parts: jax.Array) -> None:
        nonlocal kernels
        names = leaf_names(path)
        axis = _outputs_axis(setup, names, parts[0])
        if axis is not None:
            moved = reduce(jnp.logical_or, [part != 0 for part in parts])
            moved = jnp.moveaxis(moved, axis, -1)
            found.append(moved.reshape(-1, outputs).any(0))
            kernels += moved.ndim > 1
        elif starts_with(names, setup.heads) and outputs in parts[0].shape:
            unread.append("/".join(names))

    jax.tree_util.tree_map_with_path(look, *nets)
    require(
        bool(found),
        f"setup.heads {setup.heads} names no parameter whose last axis is the "
        f"{outputs} outputs, so that those of other tasks could not be held still",
    )
    require(
        kernels > 0 or not unread,
        f"setup.heads {setup.heads}: {', '.join(unread)} has the {outputs} outputs on "
        f"another axis than setup.axis={setup.axis}: kernels laid out [outputs, "
        "inputs] need axis=0",
    )
    return jnp.stack(found).any(0)


def hold_still(setup: Setup, net: PyTree, in_play: jax.Array) -> PyTree:
    """Sets a head's leaves to 0 where an output is not in play, bool[K].

    The rest of ``net`` is unchanged, also the layers of a head before its last.
    """

    def one(path, leaf: jax.Array) -> jax.Array:
        axis = _outputs_axis(setup, leaf_names(path), leaf)
        if axis is None:
            return leaf
        after = leaf.ndim - 1 if axis == 0 else 0
        return jnp.where(in_play.reshape(-1, *(1,) * after), leaf, 0)

    return jax.tree_util.tree_map_with_path(one, net)


def _outputs_axis(setup: Setup, path: tuple[str, ...], leaf: jax.Array) -> int | None:
    """Which axis of a leaf runs over the K outputs; None if the leaf has none of them.

    A leaf of no head has none, nor has a layer of a head that another of its layers
    reads: it may be K wide by chance.
    """
    if not starts_with(path, setup.heads) or leaf.ndim == 0:
        return None
    layers = head_layers(setup)
    read = {name for layer in layers for name in layer.feeds_on or ()}
    for layer in layers:
        if layer.name in read and path in (layer.path, layer.path_of_bias):
            return None
    of_layer = {layer.path: layer.axis for layer in layers}
    axis = of_layer.get(path, setup.axis) if leaf.ndim > 1 else -1
    return axis if leaf.shape[axis] == setup.logit_mask.shape[1] else None


def shares_all_outputs(setup: Setup) -> bool:
    """Whether all tasks use all outputs, as in domain-incremental learning."""
    return bool(np.asarray(setup.logit_mask).all())


def shares_an_output(setup: Setup) -> bool:
    """Whether several tasks train one output, as in class-incremental learning too."""
    return bool(np.asarray(setup.logit_mask).sum(0).max() > 1)


def cross_entropy(mask: jax.Array, mask_by: str) -> TaskLoss:
    """The weighted mean cross-entropy over the outputs in play.

    ℓ = − Σ_b w_b log softmax(masked logits)_{b, y_b} / Σ_b w_b

    Args:
      mask: bool[T, K].
      mask_by: "example" or "task"; see `scenario_mask`.

    Returns:
      ``(logits[B, K], batch, current task) -> scalar``.
    """

    def task_loss(logits: jax.Array, batch: Batch, current: jax.Array) -> jax.Array:
        logits = _masked(mask, mask_by, wide(logits), batch.task, current)
        each = -jax.nn.log_softmax(logits)[jnp.arange(batch.y.shape[0]), batch.y]
        of = batch.weight.sum()
        return total(each * batch.weight) / jnp.where(of > 0, of, 1)

    return task_loss


def shared_weights(setup: Setup, net: PyTree) -> PyTree:
    """Sets the classifier's leaves to 0 if tasks have outputs of their own."""
    if shares_all_outputs(setup):
        return net
    heads = head_mask(setup, net)
    return jax.tree.map(lambda w, head: jnp.zeros_like(w) if head else w, net, heads)
