"""How a data set of one's own is read, and cut where it has no test part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxcl.checks import require

FAULTY = ("skip", "refuse")


class Reading(NamedTuple):
    """How images are made alike, and which become test examples.

    Attributes:
      image_size: (height, width), or (side,), that images are scaled to cover and then
        cropped to about their centre; None leaves them as they are.
      test_fraction: share of each class that is for testing, where the data says
        nothing of it.
      test_seed: what that share is drawn with. It is not a run's seed: all seeds of a
        run are tested on the same examples.
      faulty: "skip" leaves out what cannot be used and says so; "refuse" ends there.
    """

    image_size: tuple[int, ...] | None = None
    test_fraction: float = 0.2
    test_seed: int = 0
    faulty: str = "skip"

    @property
    def side(self) -> tuple[int, int] | None:
        """(height, width) of every image, if that is given."""
        size = self.image_size
        return None if size is None else (size[0], size[-1])

    @property
    def split_key(self) -> str:
        """What tells one drawn test part from another."""
        return f"test{self.test_fraction:g}-{self.test_seed}"


AS_IT_LIES = Reading()
"""Images as they are; where there is no test part, a fifth of each class."""


def require_reading(reading: Reading) -> None:
    """Refuses what cannot be done.

    Raises:
      ValueError: the value and the rule.
    """
    size = reading.image_size
    require(
        size is None
        or (len(size) in (1, 2) and all(isinstance(n, int) and n > 0 for n in size)),
        f"image_size must be (height, width), both above 0, got {size}",
    )
    require(
        0 < reading.test_fraction < 1,
        f"test_fraction must lie in (0, 1), got {reading.test_fraction}",
    )
    require(
        reading.faulty in FAULTY,
        f"faulty must be one of {', '.join(FAULTY)}, got {reading.faulty!r}",
    )


def drawn_for_test(y: np.ndarray, reading: Reading) -> np.ndarray:
    """Which examples are for testing, drawn class by class.

    Of a class of n examples round(test_fraction · n) are, at least one and never all;
    of a single example none.

    Args:
      y: int[N] labels.
      reading: gives the share and the seed.

    Returns:
      bool[N].
    """
    rng = np.random.default_rng([reading.test_seed, 0x7E57])
    chosen = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        count = max(1, round(reading.test_fraction * len(rows)))
        chosen[rows[: min(count, len(rows) - 1)]] = True
    return chosen
