"""A data set from a folder of images: a folder per class, or train/ and test/ of such.

Entries that are not usable images are counted and named, once, and left out or refused.
Names that begin with a dot are ignored.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxcl.data import cache
from jaxcl.data.cache import DataError, Split
from jaxcl.data.listing import Found, add, listed, name_of
from jaxcl.data.reading import (
    SPLIT,
    Reading,
    drawn_for_test,
    require_effect,
    require_images_fit,
    size_hint,
)
from jaxcl.data.source import Source

_log = logging.getLogger(__name__)
T = TypeVar("T")
_FORMAT = 1
_SHOWN = 3
# Kind of finding -> in words: one, several, and what was done with it.
_FAULTS = {
    "broken": ("file cannot be read", "files cannot be read", "left out"),
    "stray": ("entry is no image", "entries are no images", "left out"),
    "animated": ("image has several frames", "images have several frames", "left out"),
    "loop": ("symlink leads back", "symlinks lead back", "not followed"),
    "dead": ("symlink leads nowhere", "symlinks lead nowhere", "left out"),
    "empty": ("class has no image", "classes have no image", "left out"),
    "unlearnt": (
        "class is in the test folder alone",
        "classes are in the test folder alone",
        "left out",
    ),
    "exif": (
        "image has EXIF that cannot be read",
        "images have EXIF that cannot be read",
        "taken as stored",
    ),
}
_CHANGES = {
    "turned": ("image", "images", "turned upright by EXIF"),
    "CMYK": ("CMYK image", "CMYK images", "as RGB"),
    "16 bits": ("image of 16 bits", "images of 16 bits", "as 8"),
    "transparent": (
        "image with transparency",
        "images with transparency",
        "shown opaque",
    ),
    "untested": ("class", "classes", "without a test image"),
}


def from_folder(path: str, reading: Reading, cache_dir: str | None) -> Source:
    """Reads a folder of images, or its copy in the cache, found by its content.

    Args:
      path: holds a folder per class, or train/ and test/ (val/) folders that do; see
        `jaxcl.data.listing.listed` for other names of the two.
        Classes are sorted by name, and their folders may contain folders.
      reading: the size of the images, the share for testing, and how to treat files
        that cannot be used.
      cache_dir: the cache; JAXCL_CACHE, else the user's cache folder.

    Returns:
      A `Source` whose notes say what was left out or changed. It has one channel if all
      images are gray.

    Raises:
      DataError: there is no such folder or no image in it; images have several sizes
        and image_size is not set; an entry cannot be used and ``reading.faulty`` is
        "refuse".
      ValueError: the images need more than this machine's memory, or ``reading`` has a
        share for testing beside a test folder.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"folder:{path}: {root} is no folder")
    found: Found = {}
    try:
        parts = listed(root, found)
        key = _key(root, parts, found, reading)
    except OSError as error:
        raise DataError(f"folder:{path} cannot be read: {error}") from error
    if not any(parts.values()):
        files = len(found.get("stray", ()))
        raise DataError(
            f"folder:{path}: {root} has no folder in it, one per class, but {files} "
            f"file{'' if files == 1 else 's'}"
        )
    if "test" in parts:
        require_effect(reading, f"folder:{path}, which has one", *SPLIT)
    name = f"folder:{root.name}"
    folder = cache.cache_root(cache_dir) / "folder" / key
    if not folder.exists():
        cache.write(folder, name, **_decoded(name, root, parts, found, reading))
    return cache.read(folder, name)


def _key(root: Path, parts, found: Found, reading: Reading) -> str:
    """A key that identifies the data set, made of names, bytes and the reading."""
    files = [f for classes in parts.values() for own in classes.values() for f in own]
    sums = _each(lambda file: hashlib.sha256(file.read_bytes()).hexdigest(), files)
    named = [(name_of(root, f), digest) for f, digest in zip(files, sums, strict=True)]
    classes = [(part, list(own)) for part, own in parts.items()]
    whole = repr((_FORMAT, sorted(named), classes, sorted(found.items()), reading))
    return f"{root.name}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def _each(fn: Callable[[Path], T], files: list[Path]) -> list[T]:
    """Applies fn to every file, in order; Pillow decodes outside Python's lock."""
    workers = min(8, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # the notes tell what is wrong with a file
        return list(pool.map(fn, files))


def _decoded(name: str, root: Path, parts, found: Found, reading: Reading) -> dict:
    """Makes the arguments of `cache.write`; logs all findings."""
    from jaxcl.data import images  # Pillow is not needed for a copy in the cache

    def header(file: Path) -> Any:
        try:
            return images.header(file)
        except images.Fault as fault:
            return str(fault)

    def pixels(file: Path) -> Any:
        try:
            return images.pixels(file, side, channels)
        except images.Fault as fault:
            return str(fault)

    rows = [
        (part, label, file)
        for part, classes in parts.items()
        for label, files in classes.items()
        for file in files
    ]
    headers = _each(header, [file for *_, file in rows])
    rows, headers = _usable(root, rows, headers, found)
    side = reading.side or _common_side(name, [h.size for h in headers])
    channels = 1 if all(h.gray for h in headers) else 3
    require_images_fit(name, (len(rows), *side, channels))
    decoded = _each(pixels, [file for *_, file in rows])
    told = [h.told for h in headers]
    rows, both = _usable(root, rows, list(zip(decoded, told, strict=True)), found)
    for (_, _, file), (_, changes) in zip(rows, both, strict=True):
        for kind in changes:
            add(found, kind, [name_of(root, file)])
    names, y, test = _labelled(name, parts, rows, found, reading)
    notes = _told(found, _FAULTS)
    if notes and reading.faulty == "refuse":
        raise DataError(f"{name}: {'; '.join(notes)}: refused by faulty='refuse'")
    notes += _told(found, _CHANGES)
    for note in notes:
        _log.warning("%s: %s", name, note)
    keep = y >= 0
    x = np.stack([image for (image, _), kept in zip(both, keep, strict=True) if kept])
    y, test = y[keep], test[keep]
    return {
        "train": Split(x[~test].shape, [(x[~test], y[~test])]),
        "test": Split(x[test].shape, [(x[test], y[test])]),
        "class_names": names,
        "max_value": 255,
        "notes": [f"{name}: {note}" for note in notes],
    }


def _usable(root: Path, rows: list, values: list, found: Found) -> tuple[list, list]:
    """The rows whose value, or first value of two, is no fault; records the others."""
    kept = []
    for row, value in zip(rows, values, strict=True):
        fault = value[0] if type(value) is tuple else value
        if isinstance(fault, str):
            add(found, fault, [name_of(root, row[2])])
        else:
            kept.append((row, value))
    return [row for row, _ in kept], [value for _, value in kept]


def _common_side(name: str, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    if not sizes:
        raise DataError(f"{name}: no image in a folder of a class")
    if len(distinct := set(sizes)) > 1:
        (h, w), (high, wide) = min(distinct), max(distinct)
        raise DataError(
            f"{name}: its images have {len(distinct)} sizes, from {h} × {w} to {high} "
            f"× {wide} (height × width); say which they are made: {size_hint(sizes)}"
        )
    return sizes[0]


def _labelled(name: str, parts, rows: list, found: Found, reading: Reading):
    """Class names, labels (−1: no class) and which rows are for testing."""
    learnt = {label for part, label, _ in rows if part != "test"}
    tested = {label for part, label, _ in rows if part == "test"}
    for part, classes in parts.items():
        seen = {label for own, label, _ in rows if own == part}
        at = f"{part}/" if part else ""
        add(found, "empty", (f"{at}{label}" for label in classes if label not in seen))
    add(found, "unlearnt", sorted(tested - learnt))
    names = sorted(learnt)
    number = {label: i for i, label in enumerate(names)}
    y = np.array([number.get(label, -1) for _, label, _ in rows], np.int32)
    test = np.array([part == "test" for part, *_ in rows], bool)
    if "test" not in parts:
        test = drawn_for_test(y, reading)
    add(found, "untested", [n for i, n in enumerate(names) if not test[y == i].any()])
    if tested and not tested & learnt:
        raise DataError(
            f"{name}: the test folder has no class of the training folder: "
            f"{_shown(sorted(tested))} beside {_shown(names) or 'none'}"
        )
    if test.all() or not test.any():
        raise DataError(f"{name}: no image is left for training, or none for testing")
    return names, y, test


def _told(found: Found, kinds: dict[str, tuple[str, str, str]]) -> list[str]:
    """A line per kind: how many, which, and what was done with them."""
    lines = []
    for kind, (one, several, done) in kinds.items():
        if names := found.get(kind):
            n = len(names)
            lines.append(f"{n} {one if n == 1 else several} ({_shown(names)}), {done}")
    return lines


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
