"""Claim 11's data: Tiny-ImageNet as the source, and photographs of waste as the target.

Both come as uint8 images of 96 × 96 pixels, or as a pretrained network's features of
them. Labels are words; a class of Tiny-ImageNet is named by its WordNet id.
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcl.data import sources
from jaxcl.data.cache import cache_root
from jaxcl.data.images import fitted
from jaxcl.data.prepared import data_root
from jaxcl.data.reading import Reading

from . import pretrained
from .imagenet import INDEX

SIDE = pretrained.SIDE
TRAIN, TEST = 10, 5  # source images of each class: for methods to keep, and for tests
SOURCE = tuple(INDEX)
TARGET = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
CONFUSION = (
    ("cardboard", "paper"),
    ("glass", "plastic"),
    ("metal", "trash"),
    ("paper", "cardboard"),
    ("plastic", "glass"),
    ("trash", "metal"),
)
"""Class of a photograph of waste, and the wrong label that contradicts it."""

Arrays = dict[str, np.ndarray]
"""x_train, y_train, x_test, y_test; y are words."""


@functools.cache
def images() -> Arrays:
    """Images of source and target: uint8 [N, 96, 96, 3], labels as words [N].

    The training images of the source are the first 10 of each class; methods may keep
    them, or use them to protect what they know, while they train on the target. Its
    test images are the first 5 validation images of each class, 1,000 in all. Both are
    enlarged from 64 pixels. TrashNet (Thung and Yang, 2016) lies in the folder
    ``trashnet`` beside the data of TFDS; a fifth of each of its classes is for testing.

    Raises:
      DataError: one of the two data sets is missing.
    """
    waste = sources.load(
        f"folder:{data_root().parent / 'trashnet'}", reading=Reading(image_size=(SIDE,))
    )
    tiny = sources.load("tiny_imagenet")
    found = {}
    for part, each in (("train", TRAIN), ("test", TEST)):
        x, y = (getattr(tiny, f"{part}_{what}") for what in "xy")
        rows = first_of_each(y, each)
        found[f"x_{part}"] = np.concatenate(
            [[_enlarged(x[row]) for row in rows], getattr(waste, f"{part}_x")]
        )
        words = [[SOURCE[k] for k in y[rows]]]
        words += [[waste.class_names[k] for k in getattr(waste, f"{part}_y")]]
        found[f"y_{part}"] = np.concatenate(words)
    return found


def first_of_each(labels: np.ndarray, number: int) -> np.ndarray:
    """Positions of the first `number` examples of each class, class after class."""
    return np.concatenate(
        [np.flatnonzero(labels == label)[:number] for label in np.unique(labels)]
    )


def _enlarged(image: np.ndarray) -> np.ndarray:
    return fitted(Image.fromarray(image), (SIDE, SIDE))


@functools.cache
def features() -> Arrays:
    """The pretrained network's features of the same examples: float32 [N, 1280].

    They are computed once and kept in the cache, as CIFAR-100's are.

    Raises:
      As `images`; ValueError: the weights are not installed.
    """
    found = dict(images())
    for part in ("train", "test"):
        x = found[f"x_{part}"]
        name = f"transfer_efficientnet_lite0_{SIDE}_{zlib.crc32(x.data):08x}"
        folder: Path = cache_root() / "features" / name
        found[f"x_{part}"] = pretrained.features_of(folder, part, x)
    return found
