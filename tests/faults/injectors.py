"""Injects faults into a run and its files.

Each injector causes one kind of fault, at a place that a random generator chooses.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

PAGE = 4096
# Events of Python's audit hooks that change what is on the disk.
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def files_in(folder: Path) -> list[Path]:
    """Every file that is not empty, in a fixed order."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def flip_bit(file: Path, rng: np.random.Generator) -> str:
    """Flips one bit."""
    data = bytearray(file.read_bytes())
    bit = int(rng.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"bit {bit} of {file.name} flipped"


def zero_page(file: Path, rng: np.random.Generator) -> str:
    """Zeroes a page that is not all zeros."""
    data = bytearray(file.read_bytes())
    pages = [i for i in range(0, len(data), PAGE) if any(data[i : i + PAGE])]
    start = int(rng.choice(pages))
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
    file.write_bytes(data)
    return f"page at {start} of {file.name} zeroed"


def cut_short(file: Path, rng: np.random.Generator) -> str:
    """Truncates a file, as a short write does."""
    size = int(rng.integers(file.stat().st_size))
    os.truncate(file, size)
    return f"{file.name} cut to {size} bytes"


DAMAGES: dict[str, Callable[[Path, np.random.Generator], str]] = {
    "bit flip": flip_bit,
    "zeroed page": zero_page,
    "truncation": cut_short,
}


def newest_step(checkpoints: Path) -> Path | None:
    """The folder of the last state that was saved."""
    if not checkpoints.is_dir():
        return None
    numbers = [int(p.name) for p in checkpoints.iterdir() if p.name.isdecimal()]
    return checkpoints / str(max(numbers)) if numbers else None


def damage(step: Path, kind: str, rng: np.random.Generator) -> str:
    """Damages one file of a step; larger files are more likely to be chosen."""
    files = files_in(step)
    sizes = np.array([file.stat().st_size for file in files], float)
    file = files[int(rng.choice(len(files), p=sizes / sizes.sum()))]
    return DAMAGES[kind](file, rng)


def at_operation(number: int, folder: Path, act: Callable[[], None]) -> None:
    """Calls ``act`` just before the number-th file operation under a folder.

    This process's operations are counted from 1 from now on: files opened for writing,
    renamed or removed, and folders made or removed. The hook cannot be undone.
    """
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = args
            if not flags or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in OPERATIONS:
            path = args[0]
        else:
            return
        if isinstance(path, (str, os.PathLike)) and str(folder) in os.fspath(path):
            seen += 1
            if seen == number:
                act()

    sys.addaudithook(hook)


def kill_me() -> None:
    """Ends this process as abruptly as a power cut, as far as a process can."""
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    """Raises the error that the system gives for a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
