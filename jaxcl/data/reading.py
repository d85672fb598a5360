"""How your own data set is read, and split if it has no test part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxcl.checks import require

FAULTY = ("skip", "refuse")


class Reading(NamedTuple):
    """How images are brought to one size, and which become test examples.

    Attributes:
      image_size: (height, width), or (side,). Images are scaled to cover this size and
        then cropped around their centre; None leaves them unchanged.
      test_fraction: share of each class that is used for testing, if the data has no
        test part.
      test_seed: seed for drawing that share. It is not a run's seed: all seeds of a
        run are tested on the same examples.
      faulty: "skip" leaves out unusable files and says so; "refuse" raises an error.
    """

    image_size: tuple[int, ...] | None = None
    test_fraction: float = 0.2
    test_seed: int = 0
    faulty: str = "skip"

    @property
    def side(self) -> tuple[int, int] | None:
        """(height, width) of every image, or None if not given."""
        size = self.image_size
        return None if size is None else (size[0], size[-1])

    @property
    def split_key(self) -> str:
        """A key that identifies the drawn test part."""
        return f"test{self.test_fraction:g}-{self.test_seed}"


AS_IT_LIES = Reading()
"""Images unchanged; without a test part, a fifth of each class is used for testing."""


def require_reading(reading: Reading) -> None:
    """Refuses an impossible reading.

    Raises:
      ValueError: a field breaks a rule; the message gives value and rule.
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
    """Draws which examples are for testing, class by class.

    Of a class with n examples, round(test_fraction · n) are drawn, at least one and
    never all; of a class with a single example, none.

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
