"""Which outputs of the one classifier are in play, and the loss on them.

An output is in play in a step if a loss, a replayed example or a reference gradient of
the step reaches it. The others' weights stand still: without a gradient they would
still follow momentum and weight decay, and what they say of their task would change.
"""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.ops.trees import total
from jaxcl.types import Batch, PyTree, Setup, TaskLoss

SCENARIOS = ("task", "domain", "class")


def scenario_mask(
    scenario: str, num_tasks: int, classes_per_task: list[int]
) -> tuple[jax.Array, str]:
    """The logit mask of a scenario and whose row of it applies.

    task:   each task its own outputs; row of the example's task, known at test time.
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
    if scenario not in SCENARIOS:
        raise ValueError(
            f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}"
        )
    if scenario == "domain":
        if len(set(classes_per_task)) > 1:
            raise ValueError(
                "domain-incremental tasks need equally many classes, got "
                f"{classes_per_task}"
            )
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
    """Puts outputs that are not in play at the lowest finite value.

    Args:
      setup: gives the mask.
      logits: float[B, K].
      example_task: int32[B].
      current: int32[] the task in training (in evaluation, the last one trained).

    Returns:
      float[B, K]. The lowest finite value, not −∞: −∞ turns gradients into NaN.
    """
    return _masked(setup.logit_mask, setup.mask_by, logits, example_task, current)


def _masked(mask, mask_by, logits, example_task, current):
    rows = mask[example_task] if mask_by == "example" else mask[current][None]
    return jnp.where(rows, logits, jnp.finfo(logits.dtype).min)


def head_mask(setup: Setup, net: PyTree) -> PyTree:
    """A tree like ``net``, True where a leaf belongs to the classifier."""

    def is_head(path, _):
        keys = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return any(keys[: len(h)] == h for h in setup.heads)

    return jax.tree_util.tree_map_with_path(is_head, net)


def outputs_of(setup: Setup, batch: Batch, current: jax.Array) -> jax.Array:
    """bool[K], the outputs that the loss of a batch is over.

    Args:
      setup: gives the mask.
      batch: [B] examples; those of weight 0 count for nothing.
      current: int32[] the task in training.
    """
    real = batch.weight > 0
    if setup.mask_by == "task":
        return setup.logit_mask[current] & real.any()
    return (setup.logit_mask[batch.task] & real[:, None]).any(0)


def with_gradient(setup: Setup, *nets: PyTree) -> jax.Array:
    """bool[K], the outputs whose weights have a gradient in one of some trees.

    Args:
      setup: names the classifier.
      *nets: gradients, trees like the network's parameters.

    Returns:
      True where any element of a head's leaf [..., K] is not 0.

    Raises:
      ValueError: ``setup.heads`` names no leaf whose last axis is K.
    """
    outputs = setup.logit_mask.shape[1]
    found: list[jax.Array] = []

    def look(is_head: bool, *parts: jax.Array) -> None:
        if is_head and parts[0].shape[-1:] == (outputs,):
            moved = reduce(jnp.logical_or, [part != 0 for part in parts])
            found.append(moved.reshape(-1, outputs).any(0))

    jax.tree.map(look, head_mask(setup, nets[0]), *nets)
    if not found:
        raise ValueError(
            f"setup.heads {setup.heads} names no parameter whose last axis is the "
            f"{outputs} outputs, so that those of other tasks could not be held still"
        )
    return jnp.stack(found).any(0)


def hold_still(setup: Setup, net: PyTree, in_play: jax.Array) -> PyTree:
    """Zeros in a head's leaves [..., K] where an output is not in play, bool[K].

    The rest of ``net`` is left as it is, layers of a head before its last included.
    """

    def one(is_head: bool, leaf: jax.Array) -> jax.Array:
        own = is_head and leaf.shape[-1:] == in_play.shape
        return jnp.where(in_play, leaf, 0) if own else leaf

    return jax.tree.map(one, head_mask(setup, net), net)


def shares_all_outputs(setup: Setup) -> bool:
    """Whether every output is every task's: domain-incremental learning."""
    return bool(np.asarray(setup.logit_mask).all())


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
        logits = _masked(mask, mask_by, logits, batch.task, current)
        each = -jax.nn.log_softmax(logits)[jnp.arange(batch.y.shape[0]), batch.y]
        return total(each * batch.weight) / jnp.maximum(batch.weight.sum(), 1)

    return task_loss
