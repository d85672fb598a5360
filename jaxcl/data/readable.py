"""Converts a user's arrays to pixels and labels, or says why this is impossible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxcl.checks import require
from jaxcl.data.consistent import require_unmasked


def images(x: Any, what: str) -> np.ndarray:
    """x as uint8 or float32 [N, H, W, C] or [N, D]."""
    require_unmasked(x, what)
    x = np.asarray(x)
    if x.dtype.kind not in "buif":
        raise ValueError(f"{what} must be numbers, got {x.dtype}")
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise ValueError(
            f"{what} must be [N, H, W, C], [N, H, W] or [N, D], got {list(x.shape)}"
        )
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        raise ValueError(
            f"{what} must have its channels last, got {list(x.shape)}: "
            "use x.transpose(0, 2, 3, 1)"
        )
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype.kind in "bui" and (not x.size or (x.min() >= 0 and x.max() <= 255)):
        return x.astype(np.uint8, copy=False)
    return x.astype(np.float32)


def labels(y: Any, what: str) -> np.ndarray:
    """y as whole numbers or text [N]."""
    require_unmasked(y, what)
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "buiUS":
        hint = ": give argmax(axis=1) of one-hot rows" if y.ndim == 2 else ""
        raise ValueError(
            f"{what} must be one whole number or text per example, got "
            f"{y.dtype}{list(y.shape)}{hint}"
        )
    if y.dtype.kind == "S":
        try:
            return np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} must be text in UTF-8: {error}") from None
    return y.astype(int) if y.dtype.kind == "b" else y


def classes(
    labels: list[np.ndarray], class_names: Sequence[str] | None
) -> tuple[list[str], list[np.ndarray]]:
    """Names of the classes, and the labels as their numbers."""
    if class_names is not None:
        names = _names(class_names)
        for y in labels:
            outside = y[(y < 0) | (y >= len(names))] if y.dtype.kind in "ui" else y
            require(
                not len(outside),
                f"with class_names labels lie in [0, {len(names)}), got "
                f"{outside[:1].tolist()}",
            )
        return names, [y.astype(np.int32) for y in labels]
    known, *others = map(np.unique, labels)
    for other in others:
        unknown = np.setdiff1d(other, known)
        require(
            not len(unknown),
            f"y_test has labels that y_train has not: {unknown[:5].tolist()}",
        )
    return (
        [str(label) for label in known.tolist()],
        [np.searchsorted(known, y).astype(np.int32) for y in labels],
    )


def _names(given: Any) -> list[str]:
    """Class names as text, each once."""
    if isinstance(given, set | frozenset) or not isinstance(given, Iterable):
        raise ValueError(f"class_names must be a sequence of names, got {given!r}")
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in given]
    twice = [n for n, times in Counter(names).items() if times > 1]
    require(not twice, f"class_names must differ, got {', '.join(twice)} several times")
    return names


def untested(train: np.ndarray, test: np.ndarray, names: Sequence[str]) -> list[str]:
    """Notes on classes that the training part has and the test part lacks.

    Args:
      train, test: int[N] and int[M], the classes of the examples.
      names: of the classes.
    """
    missing = np.setdiff1d(train, test)
    if not len(missing):
        return []
    n, shown = len(missing), ", ".join(names[int(c)] for c in missing[:3])
    more = ", …" if n > 3 else ""
    many = "class" if n == 1 else "classes"
    return [f"{n} {many} ({shown}{more}), without a test example"]
