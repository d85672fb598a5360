"""Oracle heads: what a linear classifier can read from a run's final features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .claim import Array

HEADS = ("ridge", "ncm", "slda")


def oracle_heads(folder: Path) -> Mapping[str, Array]:
    """Accuracy in per cent of each of `HEADS` on a run's final features [S]."""
    raise NotImplementedError(folder)
