"""Claim 11's data: Tiny-ImageNet, where a network comes from, and photographs of waste.

Both as uint8 images of 96 × 96 pixels, or as the features that a pretrained network has
of them. Labels are words: a class of the first is its WordNet id.
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
TRAIN, TEST = 10, 5  # source images of each class: to remember, and to be tested on
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
"""What a photograph of waste is called when its label contradicts it."""

Arrays = dict[str, np.ndarray]
"""x_train, y_train, x_test, y_test; y are words."""


@functools.cache
def images() -> Arrays:
    """The source's classes and the target's: uint8 [N, 96, 96, 3], words [N].

    Of the source the first 10 training images of each class, which training on the
    target may keep or be held to, and its first 5 validation images, which are tested
    on: 1,000, enlarged from 64 pixels. Of TrashNet (Thung and Yang, 2016), in the
    folder ``trashnet`` beside the data of TFDS, a fifth of each class is tested on.

    Raises:
      DataError: one of the two is not there.
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
    """Where the first `number` examples of each class are, class after class."""
    return np.concatenate(
        [np.flatnonzero(labels == label)[:number] for label in np.unique(labels)]
    )


def _enlarged(image: np.ndarray) -> np.ndarray:
    return fitted(Image.fromarray(image), (SIDE, SIDE))


@functools.cache
def features() -> Arrays:
    """The same examples as the pretrained network has them: float32 [N, 1280].

    Computed once and kept in the cache, as CIFAR-100's are.

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
