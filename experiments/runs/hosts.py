"""Several hosts that run one command: whether all of them are alive.

If a process dies, those that wait for it in a collective operation end in JAX's own
error after a while, or not at all, and no message says whose fault it was. So each
process leaves a sign of life with the coordinator every second, and reads the others'.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jax.errors import JaxRuntimeError

EVERY = 1.0
SILENT = 20.0
"""Seconds without a sign of life after which a process is taken to be dead."""
_PLACE = "jaxcl/alive/"
_RUNS, _LEFT, _FAILED = "runs", "left", "failed"
_JOINING = 60_000  # milliseconds in which all processes must have started


class Lost(Exception):
    """A host is gone; the message says which."""


class Signs:
    """What the others' signs of life say. Knows no clock and no network."""

    def __init__(self, me: int, names: Sequence[str]):
        """Begins with every process alive.

        Args:
          me: this process, from 0.
          names: of every process's host.
        """
        self._me, self._names = me, names
        self._last: dict[int, tuple[str, float]] = {}

    def judge(self, signs: Mapping[int, str], now: float) -> None:
        """Takes in the signs of a moment.

        Args:
          signs: process -> "runs N", N another number at each sign; "left"; "failed".
          now: seconds of any clock that only goes forward.

        Raises:
          Lost: a process has failed, or its sign has been the same for too long.
        """
        for process in range(len(self._names)):
            sign = signs.get(process, "")
            if process == self._me or sign == _LEFT:
                continue
            if sign == _FAILED:
                raise Lost(f"{self.name(process)} ended with an error of its own")
            if sign != self._last.get(process, (None, now))[0]:
                self._last[process] = (sign, now)
            elif now - self._last[process][1] > SILENT:
                raise Lost(f"{self.name(process)} gives no sign of life")

    def name(self, process: int) -> str:
        return f"process {process} of {len(self._names)} ({self._names[process]})"


@contextmanager
def together() -> Iterator[None]:
    """Runs its block on all hosts or on none.

    If another process dies or fails, this one says so in one line and exits with
    status 1, wherever it waits. A run's last saved state is whole, as after any kill.
    """
    client, me, total, address = _joined()
    if client is None:
        yield
        return
    over = threading.Event()

    def tell(what: str) -> None:
        told = "the same command on every host goes on from the last saved state"
        print(f"error: {what}; {told}", file=sys.stderr, flush=True)
        os._exit(1)  # the usual exit waits for the others

    client.key_value_set(f"{_PLACE}name/{me}", socket.gethostname())
    names = [
        client.blocking_key_value_get(f"{_PLACE}name/{i}", _JOINING)
        for i in range(total)
    ]
    signs = Signs(me, names)

    def leave(sign: str) -> None:
        client.key_value_set(f"{_PLACE}sign/{me}", sign, allow_overwrite=True)

    def watch() -> None:
        beat = 0
        while not over.wait(EVERY):
            beat += 1
            try:
                leave(f"{_RUNS} {beat}")
                found = client.key_value_dir_get(f"{_PLACE}sign/")
                now = {int(key.rpartition("/")[2]): sign for key, sign in found}
                signs.judge(now, time.monotonic())
            except Lost as error:
                tell(str(error))
            except JaxRuntimeError:
                without_coordinator()

    def without_coordinator() -> None:
        if not over.is_set():
            tell(f"{signs.name(0)}, which coordinates all, does not answer")

    def aborted(number: int) -> None:
        # JAX aborts a process whose coordinator is gone, and does not say whose.
        if not _answers(address):
            without_coordinator()

    leave(f"{_RUNS} 0")
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    if me:  # Python's own handlers run too late for an abort
        ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    sign = _FAILED
    try:
        yield
        sign = _LEFT
    except Exception as error:
        # If an operation of all processes failed, `watch` knows in a moment because of
        # whom, and exits. If the others are alive, the error is this process's own.
        if _may_be_of_others(error):
            time.sleep(SILENT + 10)
        raise
    finally:
        over.set()
        watching.join()
        with suppress(JaxRuntimeError):
            leave(sign)


def end(status: Any) -> None:
    """Exits with a status of failure without waiting for the other hosts, if any."""
    if _joined()[0] is not None and status:
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _may_be_of_others(error: BaseException | None) -> bool:
    """Whether an error is of JAX, but for a lack of memory, or was raised by one."""
    while error is not None:
        told = str(error)
        # JAX raises what Gloo, its transport between CPUs, says as a ValueError.
        if isinstance(error, JaxRuntimeError) or "Gloo" in told:
            return "RESOURCE_EXHAUSTED" not in told
        error = error.__cause__ or error.__context__
    return False


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _joined() -> tuple[Any, int, int, str]:
    """The client of the key-value store of all processes, or None; i of n; its address.

    JAX has no public way to it, and its own number of processes starts the devices.
    """
    from jax._src import distributed

    state = distributed.global_state
    address = state.coordinator_address or ""
    return state.client, state.process_id, state.num_processes or 1, address
