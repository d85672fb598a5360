"""Refuses a data set whose parts or numbers contradict each other."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import schema
from jaxcl.checks import require, require_finite, require_range
from jaxcl.data.source import Source
from jaxcl.schema import NonEmpty, Positive

_APART = 50.0  # no two parts of one data set differ so in size, in maximum and mean
_SAMPLE = 10**8  # pixels of a part that are looked at
_KINDS = {
    "name": str,
    "class_names": Annotated[tuple[str, ...], NonEmpty()],
    "max_value": Positive,
    "mean": Annotated[tuple[float, ...], NonEmpty()],
    "std": Annotated[tuple[Positive, ...], NonEmpty()],
    "notes": tuple[str, ...],
}


def require_source(source: Any) -> None:
    """Refuses a `Source` that cannot be trained on, or that would be read wrongly.

    Raises:
      ValueError: it is no `Source`; a field is of another kind; labels are not one
        known class per image; images are not finite; the parts have other shapes or
        scales. The message gives value and rule.
    """
    if not isinstance(source, Source):
        raise ValueError(
            f"source must be a jaxcl.data.Source, got {type(source).__name__}"
        )
    at, fields = f"{source.name}: ", source._asdict()
    schema.require_all(at, {name: fields[name] for name in _KINDS}, _KINDS)
    names = source.class_names
    require(len(set(names)) == len(names), f"{at}class_names must differ, got {names}")
    for part in ("train", "test"):
        x, y = fields[f"{part}_x"], fields[f"{part}_y"]
        numbers = _is_array(x) and (
            jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.kind in "bui"
        )
        require(
            numbers and x.ndim > 1 and 0 not in x.shape[1:],
            f"{at}{part}_x must be an array of numbers [N, H, W, C] or [N, C], got "
            f"{_told(x)}",
        )
        require(
            _is_array(y) and y.dtype.kind in "ui" and y.ndim == 1,
            f"{at}{part}_y must be an array of whole numbers [N], got {_told(y)}",
        )
        require(
            len(x) == len(y) > 0,
            f"{at}as many {part} labels as images are needed, above 0, got {len(y)} "
            f"and {len(x)}",
        )
        require_unmasked(x, f"{at}{part}_x")
        require_unmasked(y, f"{at}{part}_y")
        require_range(f"{at}{part} labels", y, len(names))
        if jnp.issubdtype(x.dtype, jnp.floating):
            require_finite(x, f"{at}{part} images")
    require_alike(source.train_x, source.test_x, (f"{at}train_x", "test_x"))
    if source.tasks is not None:
        _require_tasks(source, at)


def _require_tasks(source: Source, at: str) -> None:
    """Refuses tasks that do not fit the examples; see `jaxcl.data.from_tasks`."""
    assert source.tasks is not None
    number = len(source.tasks.names)
    for part, y in (("train", source.train_y), ("test", source.test_y)):
        of = getattr(source.tasks, part)
        found = np.unique(of)
        require(
            of.shape == y.shape and found.tolist() == list(range(number)),
            f"{at}tasks.{part} must be a number of 0 to {number - 1} per example, and "
            f"have each, got {list(of.shape)} with {found.tolist()}",
        )
    for t, name in enumerate(source.tasks.names):
        known, asked = (
            np.unique(y[of == t])
            for y, of in (
                (source.train_y, source.tasks.train),
                (source.test_y, source.tasks.test),
            )
        )
        unknown = np.setdiff1d(asked, known)
        require(
            not len(unknown),
            f"{at}{name} is tested on labels that it is not trained on: "
            f"{unknown[:5].tolist()}",
        )


def require_alike(x: np.ndarray, other: np.ndarray, names: tuple[str, str]) -> None:
    """Refuses parts whose examples have several shapes, or are on two scales.

    Args:
      x: [N, ...] examples.
      other: [M, ...].
      names: what the two are called.

    Raises:
      ValueError: the shapes differ; pixels of 0 to 255 beside pixels of 0 to 1, and the
        like.
    """
    first, second = names
    require(
        x.shape[1:] == other.shape[1:],
        f"{first} and {second} need examples of one shape, got {list(x.shape[1:])} and "
        f"{list(other.shape[1:])}",
    )
    rows = max(1, min(1000, _SAMPLE // x[0].size))
    some = [np.asarray(p[:: len(p) // rows + 1]) for p in (x, other)]
    # Bytes, as most images are, take a tenth of the time if they stay bytes.
    is_bytes = [part.dtype == np.uint8 for part in some]
    some = [
        p if is_it else p.astype(np.float32)
        for p, is_it in zip(some, is_bytes, strict=True)
    ]
    sizes = [np.abs(part) for part in some]
    largest, mean = ([float(f(size)) for size in sizes] for f in (np.max, np.mean))
    apart = all(max(pair) > _APART * min(pair) > 0 for pair in (largest, mean))
    whole = [
        is_it or bool((part == np.round(part)).all())
        for part, is_it in zip(some, is_bytes, strict=True)
    ]
    # Whole numbers from 0 to 1 say nothing: they may be rare counts.
    mixed = whole[0] != whole[1] and all(
        part.max() > 1 if is_whole else 0 <= part.min() and part.max() <= 1
        for part, is_whole in zip(some, whole, strict=True)
    )
    if apart or mixed:
        ends = [f"{part.min():g} to {part.max():g}" for part in (x, other)]
        raise ValueError(
            f"{first} and {second} need one scale: {first.rpartition(' ')[2]} is "
            f"{ends[0]}, {second} {ends[1]}"
        )


def require_unmasked(value: Any, name: str) -> None:
    """Refuses an array with masked entries, which would count like all others.

    Raises:
      ValueError: there are some; the message says how many.
    """
    masked = int(np.ma.count_masked(value)) if np.ma.isMaskedArray(value) else 0
    require(not masked, f"{name} must have no masked entries, got {masked}")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array)


def _told(value: Any) -> str:
    if _is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
