"""How your own data set is read, and split if it has no test part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import numpy as np

from jaxcl import schema
from jaxcl.checks import require, require_room
from jaxcl.schema import Count, OneOf, Range

FAULTY = ("skip", "refuse")
SPLIT = ("test_fraction", "test_seed")
"""The fields for data without a test part."""
_SMALL = 10**9  # bytes
_HINTED = 64  # pixels of the longer side, at most, that a message suggests
_KINDS = {
    "test_fraction": Annotated[float, Range(0, 1, "()")],
    "test_seed": Annotated[int, Range(0)],
    "faulty": Annotated[str, OneOf(FAULTY)],
}
_FOR = dict.fromkeys(SPLIT, "data without a test part") | {
    "image_size": "folder:PATH and data sets of TFDS",
    "faulty": "folder:PATH",
}


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
    if not isinstance(reading, Reading):
        raise ValueError(f"reading must be a jaxcl.data.Reading, got {reading!r}")
    size = reading.image_size
    sized = isinstance(size, tuple | list) and len(size) in (1, 2)
    require(
        size is None or (sized and not schema.broken(size, tuple[Count, ...])),
        f"image_size must be (height, width), both above 0, got {size}",
    )
    schema.require_all("", reading._asdict(), _KINDS)


def require_effect(reading: Reading, name: str, *fields: str) -> None:
    """Refuses fields that are given, but have no effect on a data set.

    Args:
      reading: any.
      name: the data set, for the message.
      *fields: those that have none.

    Raises:
      ValueError: one of them differs from its default.
    """
    for field in fields:
        value = getattr(reading, field)
        require(
            value == getattr(AS_IT_LIES, field),
            f"{field} is for {_FOR[field]}, not for {name}; got {value!r}",
        )


def require_images_fit(name: str, shape: tuple[int, int, int, int]) -> None:
    """Refuses images [N, H, W, C] that memory cannot hold, before they are decoded.

    Raises:
      ValueError: the memory is too small; the message gives both sizes.
    """
    n, height, width, _ = shape
    if math.prod(shape) > _SMALL:  # else JAX is not asked: it would choose its devices
        require_room(f"{name}: {n} images of {height} × {width}", math.prod(shape))


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


def size_hint(sizes: Iterable[tuple[int, int]]) -> str:
    """How to ask for one image size, for a message: the commonest that there is.

    Args:
      sizes: (height, width) of each image. Among the equally common the largest is
        taken, and large ones are scaled down: as they are they may not fit in memory.
    """
    count = Counter(sizes)
    height, width = max(count, key=lambda size: (count[size], size))
    scale = min(1.0, _HINTED / max(height, width))
    side = tuple(max(1, round(scale * n)) for n in (height, width))
    return f'--config.data.image_size="{side}"'
