"""The scores of each result, for a comparison's table and figures."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxcl import metrics, statistics
from jaxcl.fields import FIELDS, flat
from jaxcl.nn.models import MODELS
from jaxcl.strategies import METHODS

from ..runs.results import OK, Result, other_data
from .labels import labels

# Metric -> the ends of its scale: of an accuracy, or of a difference of two.
_SHARE, _DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
SCALES = {
    "acc": _SHARE,
    "aia": _SHARE,
    "bwt": _DIFFERENCE,
    "fgt": _DIFFERENCE,
    "fwt": _DIFFERENCE,
}
METRICS = tuple(SCALES)
STATISTICS = ("mean", "std", "low95", "high95", "min", "max")


class Row(NamedTuple):
    """The scores of one result.

    Attributes:
      result: the result itself.
      label: its name, unique in the table, without marks.
      scores: metric -> value per seed [S], over the tasks done; NaN for failed seeds.
      intervals: metric -> its statistics over the seeds.
      failed: (seed, what happened) of each failed seed.
      test: ACC compared with BP's. None for BP itself, for an unfinished run, and if
        there is no finished BP on the same network and data.
      apart: the fields in which BP's setting differs, if there is no test because of
        them.
    """

    result: Result
    label: str
    scores: dict[str, NDArray[np.float64]]
    intervals: dict[str, statistics.Interval]
    failed: list[tuple[int, str]]
    test: statistics.PairedTest | None
    apart: tuple[str, ...] = ()

    @property
    def unfinished(self) -> bool:
        return self.result.tasks_done < len(self.result.task_names)

    @property
    def finished_seeds(self) -> NDArray[np.bool_]:
        """Which seeds have not failed [S]."""
        failed = {seed for seed, _ in self.failed}
        return np.array([seed not in failed for seed in self.result.seeds])


def rows(results: Iterable[Result]) -> list[Row]:
    """Scores results and sorts them as in the table."""
    results = list(results)
    order = list(METHODS)
    groups = list(dict.fromkeys(map(benchmark_of, results)))
    results.sort(
        key=lambda r: (
            groups.index(benchmark_of(r)),
            order.index(r.row) if r.row in order else len(order),
            r.row,
        )
    )
    scored = [
        _score(r, label) for r, label in zip(results, labels(results), strict=True)
    ]
    references = [r for r in scored if r.result.row == "bp" and not r.unfinished]
    return [_against(row, references) for row in scored]


def benchmark_of(r: Result) -> tuple[str, ...]:
    return (r.config_name, r.scenario, *r.task_names)


def has_own_tasks(result: Result) -> bool:
    """Whether the data are of a user's function, which may give tasks of its own."""
    name = dict(flat(dict(result.config or {}))).get("data.dataset", "")
    kind, colon, _ = str(name).partition(":")
    return bool(colon) and kind not in ("arrays", "folder", "npz", "tfds")


def _score(r: Result, label: str) -> Row:
    done = r.tasks_done
    matrix, baseline = r.matrix[:, :done, :done], r.baseline[:, :done]
    if done:
        values = [
            metrics.average_accuracy(matrix),
            metrics.average_incremental_accuracy(matrix),
            metrics.backward_transfer(matrix),
            metrics.forgetting(matrix),
            metrics.forward_transfer(matrix, baseline),
        ]
    else:
        values = [np.full(len(r.seeds), np.nan)] * len(METRICS)
    failed = []
    for k, (seed, status) in enumerate(zip(r.seeds, r.status, strict=True)):
        if status != OK:
            failed.append((seed, status))
        elif done and math.isnan(values[0][k]):
            failed.append((seed, "failed: its accuracy is missing"))
    # A seed that failed late may still have numbers; they do not count.
    lost = np.isin(r.seeds, [seed for seed, _ in failed])
    scores = {
        m: np.where(lost, np.nan, v) for m, v in zip(METRICS, values, strict=True)
    }
    intervals = {
        m: statistics.interval(v, lowest=SCALES[m][0], highest=SCALES[m][1])
        for m, v in scores.items()
    }
    return Row(r, label, scores, intervals, failed, None)


def _against(row: Row, references: Sequence[Row]) -> Row:
    """The row with its test against the first BP that differs only in the method."""
    if row.result.row == "bp" or row.unfinished:
        return row
    apart = {
        i: differences(row.result, reference.result)
        for i, reference in enumerate(references)
        if benchmark_of(reference.result) == benchmark_of(row.result)
    }
    if not apart:
        return row
    nearest = min(apart, key=lambda i: len(apart[i]))
    if apart[nearest]:
        return row._replace(apart=apart[nearest])
    reference = references[nearest]
    # Two runs may have different seeds: pair by seed, not by position.
    shared = [s for s in row.result.seeds if s in reference.result.seeds]
    x, y = (
        [dict(zip(r.result.seeds, r.scores["acc"], strict=True))[s] for s in shared]
        for r in (row, reference)
    )
    return row._replace(test=statistics.paired_test(x, y))


def differences(a: Result, b: Result) -> tuple[str, ...]:
    """Fields of the network, the data and the measure in which two runs differ.

    A field that a config does not name is at its default. If a config is unknown, the
    networks may differ, so the runs count as different.
    """
    if a.config is None or b.config is None:
        return ("a config that is not known",)
    x, y = _setting(a.config), _setting(b.config)
    found = tuple(k for k in sorted(x | y) if x.get(k) != y.get(k))
    return (*found, "the images or labels") if other_data(a, b) else found


def _setting(config: Any) -> dict[str, Any]:
    data, model = config["data"], config["model"]
    setting: dict[str, Any] = {"measure": config["measure"]}
    for name, field in FIELDS.items():  # an older config lacks the newer ones
        if name.startswith(("data.", "model.")):
            setting[name] = field.default
    if model["name"] in MODELS:
        for field in dataclasses.fields(MODELS[model["name"]]):
            if field.name not in ("parent", "name"):
                setting[f"model.{field.name}"] = field.default
    setting |= {f"data.{k}": v for k, v in data.items()}
    setting |= {f"model.{k}": v for k, v in model.items()}
    # As in JSON, where a tuple is a list.
    return {k: json.dumps(v, default=str) for k, v in setting.items()}
