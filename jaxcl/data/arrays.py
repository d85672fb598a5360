"""Data sets from arrays: given in Python, in an .npz file, or by a function."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.checks import called, imported, require
from jaxcl.data import cache, readable
from jaxcl.data.cache import DataError, Source, Split
from jaxcl.data.reading import AS_IT_LIES, Reading, drawn_for_test, require_reading

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
      class_names: names of label 0, 1, …; by default the labels themselves, in order.
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
    x, y = readable.images(x_train, "x_train"), readable.labels(y_train, "y_train")
    require((x_test is None) == (y_test is None), "x_test and y_test go together")
    parts = [(x, y)]
    if x_test is not None:
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
    require(
        x.shape[1:] == other.shape[1:],
        f"x_train and x_test need examples of one shape, got {list(x.shape[1:])} and "
        f"{list(other.shape[1:])}",
    )
    for what, part in (("x_train", x), ("x_test", other)):
        bad = 0 if part.dtype == np.uint8 else int((~np.isfinite(part)).sum())
        require(not bad, f"{what} has {bad} values that are NaN or infinite")
    _require_one_scale(x, other)
    return _stored([x, numbers[0], other, numbers[1]], names, cache_dir)


def _require_one_scale(x: np.ndarray, other: np.ndarray) -> None:
    """Refuses pixels of 0 to 255 beside pixels of 0 to 1, and the like."""
    some = [np.asarray(p[:: len(p) // 1000 + 1], np.float32) for p in (x, other)]
    sizes = [np.abs(part) for part in some]
    largest, mean = ([float(f(size)) for size in sizes] for f in (np.max, np.mean))
    apart = all(max(pair) > _APART * min(pair) > 0 for pair in (largest, mean))
    whole = [bool((part == np.round(part)).all()) for part in some]
    # Whole numbers from 0 to 1 say nothing: they may be rare counts.
    mixed = whole[0] != whole[1] and all(
        part.max() > 1 if is_whole else 0 <= part.min() and part.max() <= 1
        for part, is_whole in zip(some, whole, strict=True)
    )
    ends = [f"{part.min():g} to {part.max():g}" for part in (x, other)]
    require(
        not (apart or mixed),
        f"x_train and x_test need one scale: x_train is {ends[0]}, x_test {ends[1]}",
    )


_APART = 50.0  # no two parts of one data set differ so in size, in maximum and mean
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
    return cache.read(folder, name)


def from_npz(file: Path, reading: Reading, cache_dir: str | None) -> Source:
    """Makes a data set from x_train, y_train, and x_test, y_test if given, of an .npz.

    Raises:
      DataError: there is no such file, or it cannot be read.
      ValueError: as `from_arrays`.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {k: arrays[k] for k in NAMES if k in arrays}
            others = sorted(set(arrays.files) - set(found))
    except Exception as error:  # zipfile and numpy raise many kinds
        raise DataError(f"npz:{file} cannot be read: {error}") from error
    return _of(f"npz:{file}", found, others, reading, cache_dir)


def from_function(path: str, reading: Reading, cache_dir: str | None) -> Source:
    """Makes a data set by calling "package.module:function" without arguments.

    The function returns a mapping with x_train, y_train and perhaps x_test, y_test, a
    tuple of these two or four, or a `Source`.

    Raises:
      ValueError: the function cannot be imported or called, or returns something else;
        as `from_arrays`.
    """
    given = called(path, imported(path, "dataset"))
    if isinstance(given, Source):
        return given
    if isinstance(given, tuple) and len(given) in (2, 4):
        given = dict(zip(NAMES, given, strict=False))
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{path} must give (x_train, y_train), (x_train, y_train, x_test, y_test), "
            f"a mapping with these names, or a Source, it gives {type(given).__name__}"
        )
    found = {k: given[k] for k in NAMES if k in given}
    return _of(path, found, sorted(set(given) - set(found)), reading, cache_dir)


def _of(name: str, found: dict, others: list, reading: Reading, cache_dir) -> Source:
    if not {"x_train", "y_train"} <= set(found):
        raise ValueError(
            f"{name} has to hold x_train, y_train and perhaps x_test, y_test; it holds "
            f"{', '.join([*found, *map(str, others)]) or 'nothing'}"
        )
    try:
        source = from_arrays(**found, reading=reading, cache_dir=cache_dir)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return source._replace(name=name)


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
    return cache.read(folder, name)
