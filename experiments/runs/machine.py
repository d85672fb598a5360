"""Where a run runs: devices, versions, signals."""

from __future__ import annotations

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

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class UsageError(Exception):
    """Something the user gave is wrong; the message is all they need."""


def cores() -> int:
    """Cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )


def device() -> str:
    """What runs, in words: "2 × cpu (AMD EPYC)"."""
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
    """Of Python and the packages that results depend on, and the commit if known.

    As they were at the first call: a checkout may move on under a process that runs.
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
    """The commit of the code that runs, with "+" where the code differs from it.

    None outside a checkout. Results and figures are no code.
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
    """Whether this process writes the files; all of them compute."""
    return jax.process_index() == 0


def writable(folder: Path) -> Path:
    """Makes a folder to write results into.

    Raises:
      UsageError: it cannot be made or written.
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
    """Ctrl-C, SIGTERM or SIGHUP asks the run to save and stop, a second stops at once.

    What is ignored already, as SIGHUP is under nohup, stays so.
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
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping at the end of this epoch ...", file=sys.stderr, flush=True)
