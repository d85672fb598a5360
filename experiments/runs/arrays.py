"""Named arrays in a file that is either complete or absent."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxcl.checks import require_room

from .machine import UsageError


def save(file: Path, arrays: Mapping[str, NDArray]) -> None:
    """Writes an .npz, replacing the file in one step.

    Raises:
      UsageError: the disk is full or the folder is not writable; the file keeps its
        old content.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise UsageError(
            f"cannot write {file}: {error.strerror}; free the disk or make the folder "
            "writable and run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load(file: Path) -> dict[str, NDArray]:
    """The arrays of an .npz.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no .npz, or it was cut off.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            needed = sum(member.file_size for member in archive.infolist())
        require_room(f"the arrays of {file}", needed)
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds
        raise ValueError(
            f"{file} cannot be read ({error}): run the config again in another folder"
        ) from error
