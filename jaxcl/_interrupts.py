"""Ctrl-C, SIGTERM and SIGHUP outside training: one line, status 130.

Importing JAX takes a second or two. A KeyboardInterrupt in this time would end in a
traceback from the module being imported, or that module would swallow it. Once a
command has begun, a signal raises KeyboardInterrupt; where Python swallows that, as in
a callback of the garbage collector, `check` raises it again. A program that only
imports jaxcl is not one of its commands, and signals are left alone there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

STOPPED = b"stopped; the same command goes on\n"
STATUS = 130
_USUAL = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
_asked = False


def _stop(number: int, frame: object) -> None:
    os.write(2, STOPPED)
    os._exit(STATUS)


def _ask(number: int, frame: object) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt


def _is_command(words: list[str]) -> bool:
    """Whether a command line is of ``jaxcl ...`` or ``python -m experiments...``."""
    names = ("jaxcl", "experiments")
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    started = Path(sys.argv[0]).name == "jaxcl"
    return started or any(m.split(".")[0] in names for m in module)


def until_begun() -> None:
    """Handles signals if this process is a command and was not told to ignore them."""
    if not _is_command(sys.orig_argv):
        return
    for number, usual in _USUAL.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, _stop)


def begun() -> None:
    """From here on a signal raises KeyboardInterrupt, and is remembered."""
    for number in _USUAL:
        if signal.getsignal(number) is _stop:
            signal.signal(number, _ask)


def asked() -> bool:
    """Whether a signal has come since `begun`, also if Python swallowed it."""
    return _asked


def check() -> None:
    """Raises the KeyboardInterrupt of a signal that has come since `begun`."""
    if _asked:
        raise KeyboardInterrupt


until_begun()
