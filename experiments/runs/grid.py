"""The points of a sweep: all combinations of settings, measured on validation data."""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcl.fields import literal
from jaxcl.training.problem import validate
from jaxcl.training.programs import can_trace

from ..config import folder, require_plan, set_field
from .execute import Job, carry_out, finished, prepare
from .folders import Part, require_ours
from .results import Result
from .together import joined, together

Grid = Mapping[str, Mapping[str, Sequence[Any]]]


class Point(NamedTuple):
    """One run of a sweep."""

    config: ConfigDict
    varied: dict[str, Any]  # field -> this run's value, if the grid has several

    @property
    def name(self) -> str:
        """The settings in words; also the name of the run's folder."""
        return ",".join(f"{k}={_plain(v)}" for k, v in self.varied.items()) or "only"


def require_grid(grid: Any, where: str) -> Grid:
    """Checks a grid from a config file or a command line, and returns it.

    Raises:
      ValueError: it is not row -> field -> values, or it is empty.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"{where} must be row -> field -> values, got {grid!r}")
    for row, fields in grid.items():
        if not isinstance(row, str) or not isinstance(fields, Mapping) or not fields:
            raise ValueError(
                f"{where}: row {row!r} must be field -> values, got {fields!r}"
            )
        for field in fields:
            if not isinstance(field, str) or field == "measure":
                raise ValueError(
                    f"{where}: row {row!r} has no field {field!r} to vary; a sweep "
                    "measures on validation data"
                )
    return grid


def parsed(text: str) -> dict[str, tuple]:
    """Parses a grid: "method.strength=1,10,100", or a Python dict.

    Values are read as Python literals; what is no literal is a string.

    Raises:
      ValueError: the text has neither form.
    """
    field, equals, values = text.partition("=")
    try:
        if text.lstrip().startswith("{"):
            return dict(ast.literal_eval(text))
        if not (field.strip() and equals and values.strip()):
            raise ValueError(text)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            "--grid must be FIELD=VALUE,VALUE,..., as method.strength=1,10,100, "
            f"got {text}"
        ) from error
    try:
        found = ast.literal_eval(f"({values},)")
    except (SyntaxError, TypeError, ValueError):
        found = tuple(map(literal, values.split(",")))
    return {field.strip(): found}


def row_grid(grid: Grid, row: str) -> Mapping[str, Sequence[Any]]:
    """A row's part of the grid.

    Raises:
      ValueError: the grid has no such row.
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
            if len({repr(value) for value in values}) < len(values):
                raise ValueError(
                    f"sweep, {row}: {field} needs distinct values, got {values!r}"
                )
        for chosen in itertools.product(*fields.values()):
            config = of_row.copy_and_resolve_references()
            config.measure = "valid"
            for field, value in zip(fields, chosen, strict=True):
                set_field(config, field, value)
            pairs = zip(fields, chosen, strict=True)
            found.append(Point(config, {k: v for k, v in pairs if len(fields[k]) > 1}))
    return found


class Sweep(NamedTuple):
    """The finished and the remaining part of a sweep.

    Attributes:
      size: number of points.
      done: number of a point -> its result, for points that had run before.
      left: for each remaining job, the numbers of its points and the job.
    """

    size: int
    done: dict[int, Result]
    left: list[tuple[list[int], Job]]


def prepare_points(found: Sequence[Point], workdir: Path) -> Sweep:
    """Builds and checks what has not run yet, in as few compilations as possible.

    Args:
      found: the points.
      workdir: gets a folder ROW/SETTINGS for each.

    Raises:
      As `prepare_parts`.
    """
    return prepare_parts(
        [Part(p.config, workdir / folder(p.config.row) / p.name) for p in found]
    )


def prepare_parts(parts: Sequence[Part]) -> Sweep:
    """Builds and checks the unfinished runs; those that can run together share a job.

    Args:
      parts: each config with the folder of its run.

    Raises:
      ValueError: a config contradicts itself.
      UsageError: a folder belongs to another config.
    """
    results = [finished(part.config, part.workdir) for part in parts]
    done = {i: result for i, result in enumerate(results) if result is not None}
    left = [i for i in range(len(parts)) if i not in done]
    jobs = _grouped(parts, left, together([parts[i].config for i in left]))
    return Sweep(len(parts), done, jobs)


def _grouped(
    parts: Sequence[Part], numbers: Sequence[int], groups: Sequence[Sequence[int]]
) -> list[tuple[list[int], Job]]:
    """A job per group; a group whose settings cannot be traced is split further.

    Args:
      parts: the runs.
      numbers: positions in `parts` of the runs that are grouped.
      groups: runs that may share a job, as positions in `numbers`.
    """
    jobs: list[tuple[list[int], Job]] = []
    for group in groups:
        own = [numbers[k] for k in group]
        of = tuple(parts[i] for i in own)
        if len(own) == 1:
            jobs.append((own, prepare(of[0].config, of[0].workdir)))
        elif (job := _as_one(of)) is not None:
            jobs.append((own, job))
        else:
            by_rate = together([part.config for part in of], settings=False)
            if len(by_rate) == 1:  # it is the same group, and would fail again
                by_rate = [[k] for k in range(len(own))]
            jobs += _grouped(parts, own, by_rate)
    return jobs


def _as_one(parts: tuple[Part, ...]) -> Job | None:
    """The parts as seeds of one problem; None if their settings cannot be traced."""
    problem = joined([part.config for part in parts])
    for part in parts:  # the problem has the first one's fields
        require_plan(part.config)
    validate(problem)
    if not can_trace(problem):
        return None
    name = hashlib.sha256(" ".join(p.workdir.name for p in parts).encode())
    state = parts[0].workdir.parent / f"of_{name.hexdigest()[:8]}"
    require_ours(parts, state)
    return Job(problem, parts, state)


def run_points(sweep: Sweep, *, strict: bool = False) -> list[Result]:
    """Runs the remaining jobs; `strict` as in `jaxcl.training.protocol.run`.

    Returns:
      The results of all points, in the points' order.

    Raises:
      Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    results = dict(sweep.done)
    for numbers, job in sweep.left:
        results |= zip(numbers, carry_out(job, strict=strict), strict=True)
    return [results[i] for i in range(sweep.size)]


def _plain(value: Any) -> str:
    """A value, written as in a folder's name."""
    text = str(value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"
    return text.replace("/", "_").replace(" ", "")
