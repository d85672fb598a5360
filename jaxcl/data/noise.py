"""Wrong labels: drawn per seed, among training labels only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxcl.checks import require
from jaxcl.data.classes import numbers_of


class Noise(NamedTuple):
    """How many labels of a class are changed, and to which.

    Attributes:
      share: ρ in [0, 1), of each class's examples.
      confusion: label -> label; a class that is not in it keeps its labels. None: any
        other class of the task, with equal probability.
    """

    share: float = 0.0
    confusion: Mapping[int, int] | None = None


def noise_of(
    names: Sequence[str],
    share: float,
    confusion: Sequence[Sequence[int | str]] | None,
) -> Noise:
    """Makes a `Noise` from the fields of a config.

    Args:
      names: the names of all classes.
      share: ρ.
      confusion: pairs (class, wrong class), as numbers or names.

    Raises:
      ValueError: a class is unknown, has two entries, or is confused with itself; a
        confusion table is given with share 0.
    """
    if confusion is None:
        return Noise(share)
    require(share > 0, "a confusion table needs a label_noise above 0, got 0")
    require(
        len(confusion) > 0 and all(len(pair) == 2 for pair in confusion),
        f"confusion must be pairs (class, what it is called), got {confusion}",
    )
    source = numbers_of(names, [pair[0] for pair in confusion], "confusion")
    called = [int(numbers_of(names, [pair[1]], "confusion")[0]) for pair in confusion]
    for label, other in zip(source, called, strict=True):
        require(label != other, f"confusion: {names[label]!r} is confused with itself")
    return Noise(share, dict(zip(map(int, source), called, strict=True)))


def redrawn(
    labels: NDArray[np.integer],
    tasks: Sequence[Sequence[int]],
    noise: Noise,
    rng: np.random.Generator,
    owner: NDArray[np.integer] | None = None,
) -> NDArray[np.int32]:
    """Replaces some labels by wrong ones.

    For each class c with n examples in a task, round(ρ n) of them are drawn. Each drawn
    example gets the label of the confusion table, or that of one of the other classes
    of the task, with equal probability.

    Args:
      labels: int[N].
      tasks: each task's classes.
      noise: a `Noise`.
      rng: draws the examples and, without a table, the classes.
      owner: int[N], the task of each example. None: tasks are made of classes; all
        examples of a class in several tasks count to the first one.

    Returns:
      int32[N].

    Raises:
      ValueError: a label would be one of another task, a class is alone in its task, or
        a class of the table is in no task.
    """
    changed = np.array(labels, np.int32)
    done: set[int] = set()
    for t, classes in enumerate([int(c) for c in task] for task in tasks):
        own = True if owner is None else np.asarray(owner) == t
        for label in (c for c in classes if owner is not None or c not in done):
            done.add(label)
            others = [c for c in classes if c != label]
            if noise.confusion is not None:
                if label not in noise.confusion:
                    continue
                other = noise.confusion[label]
                require(
                    other in others,
                    f"confusion: class {label} would be called {other}, a class of "
                    f"another task than its own, {classes}",
                )
                others = [other]
            require(
                len(others) > 0,
                f"label_noise needs two classes per task at least, got {classes}",
            )
            rows = np.flatnonzero((np.asarray(labels) == label) & own)
            chosen = rng.permutation(rows)[: round(noise.share * len(rows))]
            changed[chosen] = rng.choice(others, len(chosen))
    left = [label for label in noise.confusion or () if label not in done]
    require(not left, f"confusion must be of classes in tasks, got {left}, in no task")
    return changed
