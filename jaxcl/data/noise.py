"""Labels that contradict the images: drawn per seed, from training labels alone."""

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
        other class of the task, each alike.
    """

    share: float = 0.0
    confusion: Mapping[int, int] | None = None


def noise_of(
    names: Sequence[str],
    share: float,
    confusion: Sequence[Sequence[int | str]] | None,
) -> Noise:
    """Label noise from what a config says.

    Args:
      names: of all classes.
      share: ρ.
      confusion: pairs (class, what it is called), numbers or names.

    Raises:
      ValueError: a class that is not there, that has two entries, or that is confused
        with itself; a table without a share.
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
) -> NDArray[np.int32]:
    """Labels of which some are contradicted.

    Of each class c with n examples round(ρ n) are drawn; each is then called what the
    confusion table says, or one of the other classes of c's task, all alike.

    Args:
      labels: int[N].
      tasks: each task's classes; a class in several has the first one's others.
      noise: a `Noise`.
      rng: draws the examples and, without a table, the classes.

    Returns:
      int32[N].

    Raises:
      ValueError: a class would be called one of another task, or is alone in its own.
    """
    changed = np.array(labels, np.int32)
    done: set[int] = set()
    for classes in ([int(c) for c in task] for task in tasks):
        for label in (c for c in classes if c not in done):
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
            rows = np.flatnonzero(np.asarray(labels) == label)
            chosen = rng.permutation(rows)[: round(noise.share * len(rows))]
            changed[chosen] = rng.choice(others, len(chosen))
    return changed
