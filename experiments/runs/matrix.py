"""matrix.npy: the accuracies of a run so far, complete after every task."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from jaxcl import files


class MatrixFile:
    """An array float32[tasks done, S, T]: row i has the accuracies after task i.

    A row is first appended to the file; then the header is updated to include it. So a
    reader always finds complete rows, even if the writer was killed. The cost of a task
    does not grow with the number of rows.
    """

    def __init__(self, file: Path):
        self.file = file
        self._rows = 0

    def grow(self, accuracy: np.ndarray, task: int) -> None:
        """Adds a task's row, and earlier rows that the file lacks.

        Args:
          accuracy: [S, T, T], measured up to ``task``.
          task: the last one trained, from 0.
        """
        if task < self._rows:
            return
        appended = self._rows == task > 0
        new = accuracy[:, task if appended else 0 : task + 1]
        rows = np.ascontiguousarray(new.swapaxes(0, 1), np.float32)
        header = _header((task + 1, *rows.shape[1:]))
        if appended:
            with self.file.open("r+b") as stream:
                stream.seek(0, os.SEEK_END)
                stream.write(rows.tobytes())
                stream.flush()
                stream.seek(0)
                stream.write(header)
        else:
            files.write_whole(self.file, header + rows.tobytes())
        self._rows = task + 1


def _header(shape: tuple[int, ...]) -> bytes:
    """NumPy's header of a float32 array, with room for the first axis to grow."""
    stream = io.BytesIO()
    described = {"shape": shape, "fortran_order": False, "descr": "<f4"}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()
