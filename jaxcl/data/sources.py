"""The data sets: `load(name)` gives train and test as memory-mapped arrays.

    digits         Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", 1998,
                   https://archive.ics.uci.edu/dataset/80: the 1,797 test images, as
                   scikit-learn carries them. Needs no network.
    mnist          LeCun, Cortes & Burges, "MNIST handwritten digit database", 2010,
                   http://yann.lecun.com/exdb/mnist
    fashion_mnist  Xiao, Rasul & Vollgraf, "Fashion-MNIST", 2017,
                   https://arxiv.org/abs/1708.07747
    cifar10        Krizhevsky, "Learning multiple layers of features from tiny images",
    cifar100       2009, https://www.cs.toronto.edu/~kriz/cifar.html
    tiny_imagenet  Le & Yang, "Tiny ImageNet Visual Recognition Challenge", 2015 (see
                   `tiny_imagenet`); its validation images serve as the test split.

and your own data sets:

    tfds:NAME      any image classification set of TFDS (see `prepared`)
    folder:PATH    a folder per class, or train/ and test/ of such (see `folder`)
    npz:PATH       x_train, y_train and perhaps x_test, y_test (see `arrays`)
    arrays:KEY     arrays that `jaxcl.data.from_arrays` has stored
    package.module:function  gives such arrays when it is called

All are decoded once into the cache (see `cache`), which finds them by their content.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcl import schema
from jaxcl.checks import require
from jaxcl.data import arrays, cache, functions, prepared
from jaxcl.data.cache import DataError, Split
from jaxcl.data.folder import from_folder
from jaxcl.data.reading import (
    AS_IT_LIES,
    SPLIT,
    Reading,
    require_effect,
    require_reading,
)
from jaxcl.data.source import Source

__all__ = ["KINDS", "SOURCES", "DataError", "Source", "load"]

SOURCES = frozenset({"digits", *prepared.HOSTS})
KINDS = ("tfds:NAME", "folder:PATH", "npz:PATH", "package.module:function")


def load(
    name: str,
    *,
    reading: Reading = AS_IT_LIES,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> Source:
    """Returns a data set, decoding it into the cache if it is not there yet.

    Args:
      name: one of `SOURCES`, or your own data set as above.
      reading: how images are brought to one size, and which examples are tested on if
        the data has no test part.
      data_dir: the TFDS folder; TFDS_DATA_DIR, else ~/tensorflow_datasets.
      cache_dir: the cache; JAXCL_CACHE, else the user's cache folder.

    Returns:
      A Source: train_x [N, H, W, C], train_y int32 [N], test_x, test_y, ...

    Raises:
      ValueError: `name` is none of these, the arrays are inconsistent, or a field of
        `reading` is impossible, or given without effect on this data set.
      DataError: the data set is absent and cannot be prepared, its folder or cached
        copy is damaged, or the cache cannot be written.
    """
    schema.require("dataset", name, str)
    require_reading(reading)
    kind, colon, rest = name.partition(":")
    require(
        rest.strip() or not colon,
        f"dataset must be {', '.join(KINDS)}, with text after the colon, got {name!r}",
    )
    if kind != "folder":
        require_effect(reading, repr(name), "faulty")
    if name in SOURCES - {"digits"} or kind == "tfds":
        return prepared.from_tfds(rest or name, reading, data_dir, cache_dir)
    if kind == "folder":
        return from_folder(rest, reading, cache_dir)
    if name != "digits" and not colon:
        raise ValueError(
            f"dataset is {name!r}; it must be one of {sorted(SOURCES)}, or "
            f"{', '.join(KINDS)}."
        )
    require_effect(reading, repr(name), "image_size")
    if name == "digits" or kind == "arrays":
        require_effect(reading, f"{name!r}, which has one", *SPLIT)
    if name == "digits":
        folder = cache.cache_root(cache_dir) / name / "1"  # version of the split below
        if not folder.exists():
            cache.write(folder, name, **_decode_digits())
        return cache.read(folder, name)
    if kind == "npz":
        return arrays.from_npz(Path(rest).expanduser(), reading, cache_dir)
    if kind == "arrays":
        return arrays.from_cache(name, cache_dir)
    return functions.from_function(name, reading, cache_dir)


def _decode_digits() -> dict[str, Any]:
    """Every fifth example of each class, from its third on, is a test example."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype(np.uint8)
    rank = np.zeros(len(y), int)
    for label in range(10):
        rank[y == label] = np.arange((y == label).sum())
    test = rank % 5 == 2
    return {
        "train": Split(x[~test].shape, [(x[~test], y[~test])]),
        "test": Split(x[test].shape, [(x[test], y[test])]),
        "class_names": map(str, range(10)),
        "max_value": 16,
    }
