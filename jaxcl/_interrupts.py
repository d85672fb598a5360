"""Ctrl-C while a command's modules are still imported: one line, status 130.

Importing JAX takes a second or two. A KeyboardInterrupt in this time would end in a
traceback from the module being imported, or that module would swallow it. Once a
command has begun, Python handles Ctrl-C as usual. A program that only imports jaxcl is
not one of its commands, and Ctrl-C is left alone there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

STOPPED = b"stopped; the same command goes on\n"


def _stop(number: int, frame: object) -> None:
    os.write(2, STOPPED)
    os._exit(128 + number)


def _is_command(words: list[str]) -> bool:
    """Whether a command line is of ``jaxcl ...`` or ``python -m experiments...``."""
    names = ("jaxcl", "experiments")
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    started = Path(sys.argv[0]).name == "jaxcl"
    return started or any(m.split(".")[0] in names for m in module)


def until_begun() -> None:
    """Handles Ctrl-C if this process is a command and was not told to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        if _is_command(sys.orig_argv):
            signal.signal(signal.SIGINT, _stop)


def begun() -> None:
    """Gives Ctrl-C back to Python."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


until_begun()
