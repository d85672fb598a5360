"""Lists a folder of images: classes and their files, and all other entries."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

_TEST = ("test", "val", "valid", "validation")
Found = dict[str, list[str]]
"""kind -> the entries of this kind"""


def listed(root: Path, found: Found) -> dict[str, dict[str, list[Path]]]:
    """Lists which files belong to which class, by their names alone.

    Args:
      root: holds a folder per class, or train/ and test/ (val/) folders that do.
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
    test = next((name for name in _TEST if name in folders), None)
    given = {"train": "train"} if "train" in folders else {}
    if given and test:
        given["test"] = test
    if not given or (folders != {"train"} and not test):  # a class may be called train
        return {"": _classes(root, root, found)}
    add(found, "stray", (name for name in top if name not in given.values()))
    return {part: _classes(root, root / name, found) for part, name in given.items()}


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
        else:
            yield entry


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
