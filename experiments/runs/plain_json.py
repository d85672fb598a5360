"""Strict JSON: it has no NaN, so NaN is written as null."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def read_json(file: Path) -> dict[str, Any]:
    """Reads a strict JSON object; a ValueError says what the file holds instead."""
    try:
        text = file.read_text(encoding="utf-8")
        fields = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(
            f"{file}: not valid JSON ({error}); it may have been cut off or edited: "
            "resume the run to rewrite it"
        ) from None
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(fields).__name__}")
    return fields


def plain(value: Any) -> Any:
    """NumPy numbers as Python's; unprintable characters of a text are replaced."""
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "\ufffd" for c in value)
    if isinstance(value, float) and math.isnan(value):
        return None  # not known
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def nulls(a: ArrayLike) -> list[Any]:
    """Nested lists, None for NaN."""
    nested = np.array(a, object)
    nested[np.isnan(np.asarray(a, float))] = None
    return nested.tolist()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; NaN is written as null")
