"""The machine that a run is on: devices, versions, signals."""

from __future__ import annotations

import errno
import functools
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import FrameType

import jax

import jaxcl
from jaxcl import _interrupts

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


_FULL = "free the disk and run the same command again"
_CLOSED = "change that or name another folder"
_WHAT_TO_DO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _CLOSED),
}


class UsageError(Exception):
    """A user's mistake; the message alone says how to correct it."""


def in_words(error: BaseException) -> str:
    """An error's message; of a file that cannot be written, which, and what to do."""
    if not isinstance(error, OSError) or error.errno not in _WHAT_TO_DO:
        return str(error)
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror}; {_WHAT_TO_DO[error.errno]}"


def cores() -> int:
    """Cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )


def device() -> str:
    """The devices in words: "2 × cpu (AMD EPYC)"."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"cpu ({_processor()})"
    return f"{len(devices)} × {kind}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that matter, and the commit if known.

    They are read once, at the first call: the checkout may change while a process runs.
    """
    found = {"python": platform.python_version(), "jaxcl": jaxcl.__version__}
    if (at := commit()) is not None:
        found["commit"] = at
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the code that runs, with "+" if the code differs from it.

    None outside a checkout. Changes to results and figures do not count.
    """
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        code = ("jaxcl", "experiments", "configs", ":!experiments/results")
        changed = git("status", "--porcelain", "--", *code)
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def is_main_process() -> bool:
    """Whether this process writes the files; all processes compute."""
    return jax.process_index() == 0


def writable(folder: Path) -> Path:
    """Makes a folder to write results into.

    Raises:
      UsageError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror}; give another --workdir"
        ) from error
    return folder


class StopOnSignal:
    """Asks a run to save and stop at Ctrl-C, SIGTERM or SIGHUP.

    A second signal stops it at once. Signals that are already ignored, as SIGHUP is
    under nohup, stay ignored. One that came before, and was swallowed, counts.
    """

    def __init__(self):
        self.asked = False
        self._old: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._old[number] = signal.signal(number, self._ask)
        self.asked = self.asked or _interrupts.asked()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping at the end of this epoch ...", file=sys.stderr, flush=True)
