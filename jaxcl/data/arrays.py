"""Data sets from arrays: given in Python, in an .npz file, or by a function."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.checks import require
from jaxcl.data import cache, readable
from jaxcl.data.cache import DataError, Split
from jaxcl.data.consistent import require_alike
from jaxcl.data.reading import (
    AS_IT_LIES,
    SPLIT,
    Reading,
    drawn_for_test,
    require_effect,
    require_reading,
)
from jaxcl.data.source import Source

NAMES = ("x_train", "y_train", "x_test", "y_test")
_FORMAT = 1


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    reading: Reading = AS_IT_LIES,
    cache_dir: str | None = None,
) -> Source:
    """Makes a data set from arrays; the cache stores it under a key of its content.

    Args:
      x_train: [N, H, W, C] images, [N, H, W] of one channel, or [N, D] features. Whole
        numbers from 0 to 255 are kept as uint8, and 255 means 1; all others are kept
        unchanged as float32.
      y_train: [N] labels, numbers or text.
      x_test: [M, ...] like x_train; without it a share of each class is drawn for
        testing.
      y_test: [M].
      class_names: distinct names of label 0, 1, …; by default the labels themselves,
        in order.
      reading: gives the share for testing and its seed.
      cache_dir: the cache; JAXCL_CACHE, else the user's cache folder.

    Returns:
      A `Source`. Its ``name``, "arrays:KEY", can be used as ``data.dataset`` as long as
      the cache holds it.

    Raises:
      ValueError: shapes or labels contradict each other, pixels are not finite, or the
        parts are on two scales, as of 0 to 255 and 0 to 1: one holds whole numbers
        above 1 and the other fractions up to 1, or they are a factor of 50 apart; the
        message gives value and rule.

    From arrays to a table and a figure (once installed, the code of the commands is in
    ``jaxcl.experiments``):

    >>> import pathlib, tempfile
    >>> from sklearn.datasets import load_digits
    >>> import jaxcl
    >>> from experiments.reporting.build import build
    >>> from experiments.runs.execute import execute
    >>> from jaxcl.benchmark import base, finish
    >>> x, y = load_digits(return_X_y=True)
    >>> source = jaxcl.data.from_arrays(x.reshape(-1, 8, 8), y)
    >>> def config(row):
    ...     config = base("mine")
    ...     config.data.dataset, config.seeds = source.name, (0, 1)
    ...     config.model.widths, config.train.epochs = (16,), 1
    ...     return finish(config, row, {})
    >>> workdir = pathlib.Path(tempfile.mkdtemp())
    >>> runs = [execute(config(row), workdir / row) for row in ("bp", "er")]
    >>> print(build(runs, workdir).splitlines()[0][:31])
    mine, task-incremental, 5 tasks
    >>> sorted(file.name for file in workdir.glob("bars.*"))
    ['bars.png', 'bars.svg']
    """
    require_reading(reading)
    require_effect(reading, "arrays", "image_size", "faulty")
    x, y = readable.images(x_train, "x_train"), readable.labels(y_train, "y_train")
    require((x_test is None) == (y_test is None), "x_test and y_test go together")
    parts = [(x, y)]
    if x_test is not None:
        require_effect(reading, "arrays with x_test", *SPLIT)
        parts.append(
            (readable.images(x_test, "x_test"), readable.labels(y_test, "y_test"))
        )
    for (own_x, own_y), (of_x, of_y) in zip(parts, _PAIRS, strict=False):
        require(
            len(own_x) == len(own_y) > 0,
            f"{of_x} and {of_y} need the same number of rows, above 0, got "
            f"{len(own_x)} and {len(own_y)}",
        )
    names, numbers = readable.classes([own for _, own in parts], class_names)
    if len(parts) == 1:
        test = drawn_for_test(numbers[0], reading)
        parts = [(x[~test], y[~test]), (x[test], y[test])]
        numbers = [numbers[0][~test], numbers[0][test]]
        require(test.any(), f"no class has two examples to draw a test part from: {y}")
    (x, _), (other, _) = parts
    if x.dtype != other.dtype:  # one has fractions or values outside [0, 255]
        x, other = x.astype(np.float32), other.astype(np.float32)
    for what, part in (("x_train", x), ("x_test", other)):
        bad = 0 if part.dtype == np.uint8 else int((~np.isfinite(part)).sum())
        require(not bad, f"{what} has {bad} values that are NaN or infinite")
    require_alike(x, other, ("x_train", "x_test"))
    return _stored([x, numbers[0], other, numbers[1]], names, cache_dir)


_PAIRS = (NAMES[:2], NAMES[2:])


def from_cache(name: str, cache_dir: str | None) -> Source:
    """Reads the data set that `from_arrays` stored under the name "arrays:KEY".

    Raises:
      ValueError: KEY is not one that `from_arrays` gives.
      DataError: the cache does not have it.
    """
    key = name.partition(":")[2]
    require(  # "..", or a path, would lead out of the folder of arrays
        re.fullmatch("[0-9a-f]{16}", key),
        "dataset must be arrays:KEY with the 16 hex digits that jaxcl.data.from_arrays "
        f"gives, got {name!r}",
    )
    folder = cache.cache_root(cache_dir) / "arrays" / key
    if not folder.is_dir():
        raise DataError(
            f"{name}: not in {folder.parent}; call jaxcl.data.from_arrays on the "
            "arrays again, or set JAXCL_CACHE to the cache that has them"
        )
    return _noted(cache.read(folder, name))


def from_npz(file: Path, reading: Reading, cache_dir: str | None) -> Source:
    """Makes a data set from x_train, y_train, and x_test, y_test if given, of an .npz.

    Raises:
      DataError: there is no such file, or it cannot be read.
      ValueError: as `from_arrays`.
    """
    if file.is_file() and not zipfile.is_zipfile(file):
        raise DataError(f"npz:{file} cannot be read: it is no .npz; see np.savez")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {k: arrays[k] for k in NAMES if k in arrays}
            others = [k for k in arrays.files if k not in found]
    except Exception as error:  # zipfile and numpy raise many kinds
        why = str(error)
        if "allow_pickle" in why:  # numpy's advice would run code from the file
            why = "an array holds Python objects; labels that are text: y.astype(str)"
        raise DataError(f"npz:{file} cannot be read: {why}") from error
    return from_parts(f"npz:{file}", found, others, reading, cache_dir)


def from_parts(
    name: str, found: dict, others: list, reading: Reading, cache_dir
) -> Source:
    """`from_arrays` of named arrays; errors begin with the data set's name."""
    # A test part under another name would be replaced by one that is drawn.
    if others or not {"x_train", "y_train"} <= set(found):
        raise ValueError(
            f"{name} has to hold x_train, y_train and perhaps x_test, y_test, and no "
            f"more; it holds {', '.join([*found, *others]) or 'nothing'}"
        )
    try:
        source = from_arrays(**found, reading=reading, cache_dir=cache_dir)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return _noted(source._replace(name=name))


def _noted(source: Source) -> Source:
    """A source with its notes, also for a copy that was stored without them."""
    told = readable.untested(source.train_y, source.test_y, source.class_names)
    return source._replace(notes=tuple(f"{source.name}: {note}" for note in told))


def _stored(arrays: list[np.ndarray], names: list[str], cache_dir) -> Source:
    """Reads the arrays from the cache; writes them first if they are not there."""
    digest = hashlib.sha256(repr((_FORMAT, names)).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    key = digest.hexdigest()[:16]
    name, folder = f"arrays:{key}", cache.cache_root(cache_dir) / "arrays" / key
    if not folder.exists():
        x, y, test_x, test_y = arrays
        cache.write(
            folder,
            name,
            train=Split(x.shape, [(x, y)], x.dtype.type),
            test=Split(test_x.shape, [(test_x, test_y)], test_x.dtype.type),
            class_names=names,
            max_value=255 if x.dtype == np.uint8 else 1,
        )
    return _noted(cache.read(folder, name))
