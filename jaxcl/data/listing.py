"""Lists a folder of images: classes and their files, and all other entries."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

_PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_RANK = {name: i for i, name in enumerate(chain(*_PARTS.values()))}
_AS_WRITTEN = {"train", "test", "val", "valid", "validation"}
Found = dict[str, list[str]]
"""kind -> the entries of this kind"""


def listed(root: Path, found: Found) -> dict[str, dict[str, list[Path]]]:
    """Lists which files belong to which class, by their names alone.

    Args:
      root: holds a folder per class, or train/ and test/ folders that do; these may
        also be called training, testing, val, valid or validation, in any case.
      found: receives entries that are not used: "stray" ones, and symlinks of kind
        "loop" and "dead".

    Returns:
      part -> class -> files, sorted by name; the parts are "train" and "test", or ""
      if the folders are classes.

    Raises:
      OSError: a folder cannot be read.
    """
    top = {entry.name: entry for entry in _entries(root)}
    folders = {name for name, entry in top.items() if entry.is_dir()}
    given = _parts(root, folders)
    if not given:
        return {"": _classes(root, root, found)}
    add(found, "stray", (name for name in top if name not in given.values()))
    return {part: _classes(root, root / name, found) for part, name in given.items()}


def _parts(root: Path, folders: set[str]) -> dict[str, str]:
    """Part -> its folder; none if the folders are classes, which may be called train.

    Beside other folders, "train" and a test folder are parts, but "Training" and
    "Testing" only if they hold folders.
    """
    given = {}
    for part, names in _PARTS.items():
        if own := [f for f in folders if f.lower() in names]:
            given[part] = min(own, key=lambda f: (_RANK[f.lower()], f.swapcase()))
    if "train" not in given or (len(given) < 2 and len(folders) > 1):
        return {}
    alone = all(f.lower() in _RANK for f in folders)
    if alone or set(given.values()) <= _AS_WRITTEN:
        return given
    held = (any(e.is_dir() for e in _entries(root / f)) for f in given.values())
    return given if all(held) else {}


def name_of(root: Path, entry: Path) -> str:
    """An entry's name in messages."""
    return entry.relative_to(root).as_posix()


def add(found: Found, kind: str, names: Iterable[str]) -> None:
    """Records entries of a kind."""
    if names := list(names):
        found.setdefault(kind, []).extend(names)


def _classes(root: Path, folder: Path, found: Found) -> dict[str, list[Path]]:
    classes, above = {}, (root.resolve(), folder.resolve())
    for entry in _entries(folder):
        if kind := _kind_of_link(entry, above):
            add(found, kind, [name_of(root, entry)])
        elif entry.is_dir():
            below = (*above, entry.resolve())
            classes[entry.name] = list(_files(root, entry, below, found))
        else:
            add(found, "stray", [name_of(root, entry)])
    return classes


def _files(
    root: Path, folder: Path, above: tuple[Path, ...], found: Found
) -> Iterator[Path]:
    """All files under a folder; symlinks are followed unless they lead in a circle."""
    for entry in _entries(folder):
        if kind := _kind_of_link(entry, above):
            add(found, kind, [name_of(root, entry)])
        elif entry.is_dir():
            yield from _files(root, entry, (*above, entry.resolve()), found)
        elif entry.is_file():
            yield entry
        else:  # a pipe or a device: reading it might never end
            add(found, "stray", [name_of(root, entry)])


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.name[0] != ".")


def _kind_of_link(entry: Path, above: tuple[Path, ...]) -> str | None:
    """Why a symlink cannot be followed, "loop" or "dead"; None if it can be."""
    if not entry.is_symlink():
        return None
    try:
        entry.stat()
    except OSError as error:
        return "loop" if error.errno == errno.ELOOP else "dead"
    return "loop" if entry.resolve() in above else None
