"""A labelled data set, as every reader gives it and `make_stream` takes it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Tasks(NamedTuple):
    """Which task each example is of, where a data set has tasks of its own."""

    train: np.ndarray  # int32 [N]
    test: np.ndarray  # int32 [M]
    names: tuple[str, ...]  # [T]


class Source(NamedTuple):
    """A labelled image data set, in the order of its source, memory-mapped."""

    name: str
    train_x: np.ndarray  # uint8 or float32 [N, H, W, C], or features [N, C]
    train_y: np.ndarray  # int32 [N]
    test_x: np.ndarray  # as train_x, [M, ...]
    test_y: np.ndarray  # int32 [M]
    class_names: tuple[str, ...]  # of label 0, 1, ...
    max_value: float  # the pixel value that means 1.0
    mean: tuple[float, ...]  # [C], of train_x / max_value
    std: tuple[float, ...]  # [C], of train_x / max_value; 1: a channel is constant
    notes: tuple[str, ...] = ()  # what readers of its results have to know
    tasks: Tasks | None = None  # None: tasks are cut from it by its classes
