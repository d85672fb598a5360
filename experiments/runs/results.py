"""The result of one run, and how its file `result.json` is written and read.

The file is strict JSON: NaN (not measured, or failed) is written as null. It is
replaced in one step: no reader sees half a file, and a killed run leaves a whole one.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxcl import files, schema
from jaxcl.heads import SCENARIOS
from jaxcl.schema import Natural, NonEmpty, NonNegative, OneOf

from . import measured
from .plain_json import nulls, plain, read_json

FILE_NAME = "result.json"
CONFIG_NAME = "config.json"
OK = "ok"


class Result(NamedTuple):
    """The result of a method on a benchmark, with all seeds: S seeds, T tasks.

    Attributes:
      config_name: the benchmark's config, e.g. "digits".
      row: the method's name in the registry, e.g. "ewc".
      scenario: "task", "domain" or "class".
      seeds: the seeds [S].
      status: for each seed "ok", or what failed and when: "failed: task 3, epoch 2".
      matrix: accuracy in [0, 1] on task j after task i [S, T, T]; NaN: not measured.
      baseline: accuracy in [0, 1] at random initialisation [S, T].
      task_names: the tasks' names [T].
      tasks_done: how many tasks were trained to their end; T in a finished run.
      steps: optimizer steps taken.
      wall_s: seconds that the run took.
      device: where it ran; several devices if it was resumed on another one.
      versions: package -> version, at the run's end.
      notes: what a reader of the table must know.
      report: quantity -> layer -> what the strategy reports after each task [S, T];
        NaN: not measured, or not finite.
      sessions: for each process of the run its device, its versions, the hash of its
        code, that of the data and how often it started; equal processes in a row are
        one entry.
      config: the run's config, from `config.json` beside the file; None: unknown.
      features: "quantity/layer" -> [S, ...], from `features.npz` beside it, if any.
        `config` and `features` are not in the file itself.
    """

    config_name: str
    row: str
    scenario: str
    seeds: Sequence[int]
    status: Sequence[str]
    matrix: NDArray[np.float64]
    baseline: NDArray[np.float64]
    task_names: Sequence[str]
    tasks_done: int
    steps: int
    wall_s: float
    device: str
    versions: Mapping[str, str]
    notes: Sequence[str] = ()
    report: Mapping[str, Mapping[str, NDArray[np.float64]]] = {}
    sessions: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] | None = None
    features: Mapping[str, NDArray] = {}


# Rules that concern one field alone.
KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("config_name", "row", "device"), str),
    "scenario": Annotated[str, OneOf(SCENARIOS)],
    "seeds": schema.Seeds,
    "status": Sequence[str],
    "task_names": Annotated[Sequence[str], NonEmpty()],
    "notes": Sequence[str],
    "sessions": Sequence[Any],
    **dict.fromkeys(("tasks_done", "steps"), Natural),
    "wall_s": NonNegative | None,
}


def save(path: str | os.PathLike[str], result: Result) -> None:
    """Writes a result, replacing the file in one step.

    Args:
      path: the file, or an existing folder that gets a `result.json`.
      result: what to write.

    Raises:
      ValueError: a shape or a value that `load` would refuse.
    """
    file = _file(path)
    result = check(result, str(file))
    fields = result._asdict()
    del fields["config"], fields["features"], fields["matrix"]
    fields["baseline"] = nulls(fields["baseline"])
    fields["wall_s"] = None if math.isnan(result.wall_s) else result.wall_s
    fields["report"] = {
        quantity: {layer: nulls(values) for layer, values in layers.items()}
        for quantity, layers in result.report.items()
    }
    files.write_whole(file, _pieces(fields, result.matrix))


def _pieces(fields: dict[str, Any], matrix: NDArray[np.float64]) -> Iterator[str]:
    """The file's text in pieces, one row of the matrix at a time.

    A thousand tasks have two million entries. As Python numbers, all at once, they
    would take hundreds of megabytes, which the process would not give back.
    """
    yield json.dumps(fields, allow_nan=False, indent=1).removesuffix("\n}")
    yield ',\n "matrix": ['
    for i, rows in enumerate(matrix):
        yield ("," if i else "") + "\n  ["
        for j, row in enumerate(rows):
            text = json.dumps(nulls(row), allow_nan=False)
            yield ("," if j else "") + f"\n   {text}"
        yield "\n  ]"
    yield "\n ]\n}\n"


def other_data(a: Result, b: Result) -> bool:
    """Whether runs are known to be of other images or labels; old ones do not say."""
    x, y = (r.sessions[-1].get("data") if r.sessions else None for r in (a, b))
    return None not in (x, y) and x != y


def load(path: str | os.PathLike[str]) -> Result:
    """Reads a result.

    Args:
      path: the file, or the run's folder.

    Returns:
      The result, its arrays as float64.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no complete, strict JSON object of the fields above.
    """
    file = _file(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file, a run writes it when its first task ends: go on "
            "with it, or name the run's own folder"
        )
    fields = read_json(file)
    beside = file.parent / CONFIG_NAME
    fields["config"] = read_json(beside) if beside.is_file() else None
    fields["features"] = measured.load(file.parent)
    missing = [k for k in Result._fields if k not in fields | Result._field_defaults]
    if missing:
        raise ValueError(
            f"{file}: lacks {', '.join(missing)}; it is not a result of this version: "
            f"run the config again"
        )
    own = (fields["config"] or {}).get("seeds", seeds := fields["seeds"])
    if own != seeds:
        raise ValueError(f"{file} has seeds {seeds}, {beside} {own}")
    known = {k: v for k, v in fields.items() if k in Result._fields}
    return check(Result(**known), str(file))


def check(result: Result, where: str) -> Result:
    """Checks a result's shapes and ranges; makes fields plain Python and float64.

    Args:
      result: what to check.
      where: named in error messages.

    Returns:
      The same result; arrays are float64, numbers and sequences Python's own.

    Raises:
      ValueError: a field has the wrong type, shape or range.
    """

    def fail(problem: str) -> ValueError:
        return ValueError(f"{where}: {problem}; run the config again to rewrite it")

    def numbers(name: str, value: Any, axes: str, shape: tuple[int, ...]) -> NDArray:
        try:
            a = np.asarray(value, float)
        except (TypeError, ValueError):
            raise fail(f"{name} must be numbers or null, of shape {axes}") from None
        if a.shape != shape:
            raise fail(f"{name} must be {axes} = {shape}, got {a.shape}")
        return a

    def shares(name: str, value: Any, axes: str, shape: tuple[int, ...]) -> NDArray:
        a = numbers(name, value, axes, shape)
        # Means of float32 accuracies may exceed 1 by a rounding error.
        outside = a[(a < -1e-6) | (a > 1 + 1e-6)]
        if outside.size:
            raise fail(f"{name} must lie in [0, 1], got {outside[0]:g}")
        return a

    r = result._replace(**{name: plain(getattr(result, name)) for name in KINDS})
    for name, kind in KINDS.items():
        if rule := schema.broken(getattr(r, name), kind):
            raise fail(f"{name} must {rule}, got {getattr(r, name)!r}")
    for name in ("versions", "report", "config"):
        value = getattr(r, name)
        if not isinstance(value, Mapping) and (name != "config" or value is not None):
            raise fail(f"{name} must be an object, got {value!r}")
    named = {f"report[{name!r}]": value for name, value in r.report.items()}
    named |= {f"sessions[{i}]": value for i, value in enumerate(r.sessions)}
    for name, value in named.items():
        if not isinstance(value, Mapping):
            raise fail(f"{name} must be an object, got {value!r}")
    s, t = len(r.seeds), len(r.task_names)
    if len(set(r.seeds)) != s:
        raise fail(f"seeds must be distinct, got {r.seeds}")
    if len(r.status) != s:
        raise fail(f"status must be one per seed, got {len(r.status)} for {s} seeds")
    if r.tasks_done > t:
        raise fail(f"tasks_done must lie in 0..{t}, got {r.tasks_done}")

    def reported(quantity: str, layer: str, value: Any) -> NDArray:
        # A strategy may report any number: one that is not finite must not end a run.
        a = numbers(f"report[{quantity!r}][{layer!r}]", value, "[S, T]", (s, t))
        return np.where(np.isfinite(a), a, np.nan)

    report = {
        str(quantity): {
            str(layer): reported(quantity, layer, v) for layer, v in layers.items()
        }
        for quantity, layers in r.report.items()
    }
    return r._replace(
        matrix=shares("matrix", r.matrix, "[S, T, T]", (s, t, t)),
        baseline=shares("baseline", r.baseline, "[S, T]", (s, t)),
        wall_s=math.nan if r.wall_s is None else r.wall_s,
        sessions=[dict(v) for v in r.sessions],
        versions={str(k): str(v) for k, v in r.versions.items()},
        report=report,
    )


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
