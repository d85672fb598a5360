"""A run's steps as folders: written whole, checked before they are read.

A step holds the files of orbax and the file `about`: the size and the hash of each
file, the fingerprint of the run, and a hash of `about` itself. A step gets its name, a
number, only when all of this is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from jaxcl import files
from jaxcl.training.describe import hash_of

ABOUT = "about"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says what to do."""


class Damaged(Exception):
    """A step's files differ from what was written; the message says which."""


def peek(folder: Path) -> dict[str, str] | None:
    """The `Fingerprint.identity` of the newest state in a folder; None if unreadable.

    Reads little and changes nothing.
    """
    about = newest(folder)
    return about and about["fingerprint"]["identity"]


def newest(folder: Path) -> dict[str, Any] | None:
    """What the newest state in a folder says about itself; None if unreadable."""
    for step in sorted(numbers(folder), reverse=True):
        with contextlib.suppress(OSError, Damaged):
            return about_of(folder / str(step))
    return None


def numbers(folder: Path) -> list[int]:
    """The steps in a folder."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def seal(step: Path, about: dict[str, Any]) -> None:
    """Writes `about`, which covers all files in a step's folder."""
    about["files"] = {}
    for path in sorted(step.rglob("*")):
        files.settle(path)
        if path.is_file():
            data = path.read_bytes()
            name = path.relative_to(step).as_posix()
            about["files"][name] = [len(data), hash_of(data)]
    text = json.dumps(about, sort_keys=True).encode()
    files.write_whole(step / ABOUT, hash_of(text).encode() + b"\n" + text)


def about_of(step: Path) -> dict[str, Any]:
    """Reads a step's `about`.

    Raises:
      Damaged: it differs from what was written.
      OSError: it cannot be read.
    """
    if not (step / ABOUT).exists():
        raise Damaged(f"its file {ABOUT!r} is missing")
    digest, _, text = (step / ABOUT).read_bytes().partition(b"\n")
    if digest != hash_of(text).encode():
        raise Damaged(f"its file {ABOUT!r} is not what was written")
    return json.loads(text)


def check(step: Path) -> dict[str, Any]:
    """Reads a step's `about`, and checks that all its files are as written.

    Raises:
      Damaged: a file is not.
      CheckpointError: a file cannot be read, or this code cannot check its format.
    """
    if (step / "default").exists() and not (step / ABOUT).exists():
        raise CheckpointError(
            f"checkpoint {step} was written by an earlier version of jaxcl, without "
            "the means to check it; it is left as it is: go on with that version, or "
            "use another --workdir"
        )
    try:
        about = about_of(step)
        there = {p.relative_to(step).as_posix() for p in step.rglob("*") if p.is_file()}
        for name in sorted(there ^ {ABOUT, *about["files"]}):
            state = "new" if name in there else "missing"
            raise Damaged(f"its file {name!r} is {state}")
        for name, (size, digest) in about["files"].items():
            data = (step / name).read_bytes()
            if len(data) != size:
                raise Damaged(f"its file {name!r} has {len(data)} of {size} bytes")
            if hash_of(data) != digest:
                raise Damaged(f"its file {name!r} is not what was written")
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {step} cannot be read: {error.strerror} ({error.filename}); "
            "it is left as it is: mend that and run the same command again"
        ) from error
    return about


def set_aside(folder: Path, step: int) -> str:
    """Renames a damaged step to a name that is no number; returns the name."""
    number, name = 1, f"damaged-{step}"
    while (folder / name).exists():
        number += 1
        name = f"damaged-{step}-{number}"
    (folder / str(step)).rename(folder / name)
    return name


def forget(folder: Path, keep: int) -> None:
    """Removes all steps but the last `keep`."""
    for step in sorted(numbers(folder))[:-keep]:
        # A step with its own name is always whole, even if this process is killed.
        old = folder / f".{step}.old.tmp"
        (folder / str(step)).rename(old)
        shutil.rmtree(old, ignore_errors=True)
