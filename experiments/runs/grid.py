"""The points of a sweep: every combination of settings, run on validation data."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcl.training.problem import validate
from jaxcl.training.programs import can_trace

from ..config import folder
from .execute import Job, Part, carry_out, finished, prepare
from .results import Result
from .together import joined, together

Grid = Mapping[str, Mapping[str, Sequence[Any]]]


class Point(NamedTuple):
    """One run of a sweep."""

    config: ConfigDict
    varied: dict[str, Any]  # the fields that have more than one value, and this run's

    @property
    def name(self) -> str:
        """The settings in words, and the run's folder."""
        return ",".join(f"{k}={_plain(v)}" for k, v in self.varied.items()) or "only"


def row_grid(grid: Grid, row: str) -> Mapping[str, Sequence[Any]]:
    """A row's part of the grid.

    Raises:
      ValueError: it has none.
    """
    if row not in grid:
        raise ValueError(f"sweep() has no row {row!r}; it has {', '.join(grid)}")
    return grid[row]


def points(grid: Grid, configs: Sequence[ConfigDict]) -> list[Point]:
    """Every combination of every row's values, as configs measured on validation data.

    Args:
      grid: row -> field -> values.
      configs: of the rows, in the grid's order.

    Returns:
      The points, row by row, the last field changing fastest.

    Raises:
      ValueError: a field that the config does not have, or one without values.
    """
    found = []
    for (row, fields), of_row in zip(grid.items(), configs, strict=True):
        for field, values in fields.items():
            if not isinstance(values, (tuple, list)) or not values:
                raise ValueError(
                    f"sweep, {row}: {field} needs a list of values, got {values!r}"
                )
        for chosen in itertools.product(*fields.values()):
            config = of_row.copy_and_resolve_references()
            config.measure = "valid"
            for field, value in zip(fields, chosen, strict=True):
                if not _has(config, field):
                    raise ValueError(f"sweep, {row}: no field {field}")
                config.update_from_flattened_dict({field: value})
            pairs = zip(fields, chosen, strict=True)
            found.append(Point(config, {k: v for k, v in pairs if len(fields[k]) > 1}))
    return found


def _has(config: ConfigDict, field: str) -> bool:
    node: Any = config
    for part in field.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            return False
        node = node[part]
    return True


class Sweep(NamedTuple):
    """What a sweep has done and what it has left to do.

    Attributes:
      size: how many points there are.
      done: number of a point -> its result, of those that had run before.
      left: jobs, and the numbers of the points that each runs.
    """

    size: int
    done: dict[int, Result]
    left: list[tuple[list[int], Job]]


def prepare_points(found: Sequence[Point], workdir: Path) -> Sweep:
    """Builds and checks what has not run yet; points that can share a compilation do.

    Args:
      found: the points.
      workdir: gets a folder ROW/SETTINGS for each.

    Raises:
      ValueError: a point's config contradicts itself.
      UsageError: a folder belongs to another config.
    """
    folders = [workdir / folder(point.config.row) / point.name for point in found]
    done: dict[int, Result] = {}
    for i, (point, own) in enumerate(zip(found, folders, strict=True)):
        result = finished(point.config, own)
        if result is not None:
            done[i] = result
    left = [i for i in range(len(found)) if i not in done]
    jobs: list[tuple[list[int], Job]] = []
    for group in together([found[i].config for i in left]):
        numbers = [left[k] for k in group]
        parts = tuple(Part(found[i].config, folders[i]) for i in numbers)
        job = _as_one(parts) if len(parts) > 1 else None
        if job is not None:
            jobs.append((numbers, job))
        else:
            each = zip(numbers, parts, strict=True)
            jobs += [([i], prepare(part.config, part.workdir)) for i, part in each]
    return Sweep(len(found), done, jobs)


def _as_one(parts: tuple[Part, ...]) -> Job | None:
    """The parts as seeds of one problem; None if their settings cannot be traced."""
    problem = joined([part.config for part in parts])
    validate(problem)
    if not can_trace(problem):
        return None
    name = hashlib.sha256(" ".join(p.workdir.name for p in parts).encode())
    state = parts[0].workdir.parent / f"of_{name.hexdigest()[:8]}"
    return Job(problem, parts, state)


def run_points(sweep: Sweep) -> list[Result]:
    """Runs what is left.

    Returns:
      The results of all points, in their order.

    Raises:
      Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    results = dict(sweep.done)
    for numbers, job in sweep.left:
        results |= zip(numbers, carry_out(job), strict=True)
    return [results[i] for i in range(sweep.size)]


def _plain(value: Any) -> str:
    """A value in a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("/", "_").replace(" ", "")
