"""Files that are written whole or not at all; folders for one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

LOCK_NAME = ".lock"
# orbax adds a suffix of its own to the folder that it is filling.
_LEFT = re.compile(r"\.(.+\.)?\d+(\.old)?\.tmp(\.orbax-checkpoint-tmp.*)?")


def write_whole(file: Path, data: bytes | str | Iterable[str]) -> None:
    """Writes a file and replaces an old one of that name in a single step.

    A reader sees the old file or the new one, never a part, also after a kill or a
    power cut.

    Args:
      file: in a folder that exists.
      data: its content; text is written as UTF-8, pieces of text one after another.

    Raises:
      OSError: the file, which it names, cannot be written; an old file stays unchanged.
    """
    pieces = [data] if isinstance(data, bytes | str) else data
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            for piece in pieces:
                stream.write(piece if isinstance(piece, bytes) else piece.encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        settle(file.parent)
    except OSError as error:  # a full disk names none, others the temporary one
        if error.errno is not None:
            error.filename, error.filename2 = str(file), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Waits until the content of a file or a folder is on the disk."""
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def sweep(folder: Path) -> None:
    """Removes files that killed writers left under a folder; hold its lock for this.

    These are `write_whole`'s, ``.NAME.PID.tmp``, and states that were being saved or
    replaced, ``.STEP.tmp`` and ``.STEP.old.tmp``.
    """
    for left in _left_under(folder):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Removes what killed processes left under a folder, where no process uses it.

    These are locks and half-written files. What is in use, or cannot be written, stays
    as it is.
    """
    for lock in [*folder.rglob(LOCK_NAME)]:
        with contextlib.suppress(InUse, OSError), Lock(lock.parent):
            pass  # releasing it removes the file
    if _left_under(folder):
        with contextlib.suppress(InUse, OSError), Lock(folder):
            sweep(folder)


def _left_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*.tmp*") if _LEFT.fullmatch(path.name)]


class InUse(RuntimeError):
    """Another process works in the folder; the message says which."""


class Lock:
    """Holds a folder: only one of the processes that ask for it gets it.

    The operating system frees the folder when the process ends, however it ends: the
    folder of a dead holder is free. The file `.lock` tells others who holds it.
    """

    def __init__(self, folder: Path):
        """Takes the folder; makes it if there is none.

        Raises:
          InUse: another process, or another part of this one, holds it.
          OSError: the folder cannot be made or written.
        """
        self.folder = folder
        self._file = folder / LOCK_NAME
        self._number: int | None = None
        there = next(p for p in folder.absolute().parents if p.exists())
        with _one_at_a_time(there):  # else one makes the folder and another holds it
            self._made = [p for p in (folder, *folder.parents) if not p.exists()]
            while self._number is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._number = self._taken()
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        os.ftruncate(self._number, 0)
        os.pwrite(self._number, json.dumps(me).encode(), 0)

    def _taken(self) -> int | None:
        """The locked file's descriptor; None if the last holder is just removing it."""
        try:
            number = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            raise InUse(_told(self.folder)) from None
        if _same(number, self._file):
            return number
        os.close(number)
        return None

    def release(self) -> None:
        """Frees the folder, and removes it if it was made here and is still empty."""
        if self._number is None:
            return
        self._file.unlink(missing_ok=True)
        os.close(self._number)
        self._number = None
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one caller in at a time; waits a second at most, and only if flock works."""
    number = None
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
    for _ in range(100 if number is not None else 0):
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            break
    try:
        yield
    finally:
        if number is not None:
            os.close(number)


def in_use(folder: Path) -> str | None:
    """Who holds a folder, in a sentence; None if it is free."""
    try:
        number = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _told(folder)
    finally:
        os.close(number)
    return None


def _told(folder: Path) -> str:
    """Who holds a folder; the holder writes this just after it took the folder."""
    who = "another process"
    for _ in range(20):
        try:
            told = json.loads((folder / LOCK_NAME).read_text())
            who = f"process {told['pid']} on {told['host']}, since {told['since']}"
            break
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.02)
    return f"{folder} is in use: {who}; wait for it to end or use another folder"


def _same(number: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), file.stat())
    except FileNotFoundError:
        return False


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def tail_key(path: Path) -> str:
    """Returns a key that identifies an archive: "<bytes>-<CRC-32 of its tail>".

    A zip archive's tail holds the sums of the last files in it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16)))
        return f"{size}-{zlib.crc32(file.read()):08x}"
