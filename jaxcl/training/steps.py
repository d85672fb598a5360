"""A run's steps as folders: written whole, checked before they are read.

A step holds what orbax writes, and beside it `about`: the size and the hash of each of
its files, the fingerprint of what the state is of, and a hash of `about` itself. It has
its name, a number, only once all of that is on the disk.
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
    """A step's files are not what was written; says which."""


def peek(folder: Path) -> dict[str, str] | None:
    """What the newest state in a folder says it is of; None if nothing can be read.

    That is `Fingerprint.identity`. Reads little and changes nothing.
    """
    for step in sorted(numbers(folder), reverse=True):
        with contextlib.suppress(OSError, Damaged):
            return about_of(folder / str(step))["fingerprint"]["identity"]
    return None


def numbers(folder: Path) -> list[int]:
    """The steps in a folder."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def seal(step: Path, about: dict[str, Any]) -> None:
    """Writes `about` over all that lies in a step's folder."""
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
    """Reads what a step says of itself.

    Raises:
      Damaged: it is not what was written.
      OSError: it cannot be read.
    """
    if not (step / ABOUT).exists():
        raise Damaged(f"its file {ABOUT!r} is missing")
    digest, _, text = (step / ABOUT).read_bytes().partition(b"\n")
    if digest != hash_of(text).encode():
        raise Damaged(f"its file {ABOUT!r} is not what was written")
    return json.loads(text)


def check(step: Path) -> dict[str, Any]:
    """What a step says of itself, if each of its files is what was written.

    Raises:
      Damaged: one is not.
      CheckpointError: one cannot be read, or is of a form that this code cannot check.
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
    """Gives a damaged step a name that is no number; returns it."""
    number, name = 1, f"damaged-{step}"
    while (folder / name).exists():
        number += 1
        name = f"damaged-{step}-{number}"
    (folder / str(step)).rename(folder / name)
    return name


def forget(folder: Path, keep: int) -> None:
    """Removes all steps but the last `keep`."""
    for step in sorted(numbers(folder))[:-keep]:
        # Under its own name it is whole or not there, whenever this is killed.
        old = folder / f".{step}.old.tmp"
        (folder / str(step)).rename(old)
        shutil.rmtree(old, ignore_errors=True)
