r"""Chooses settings: runs a config's grid on validation data only, into one table.

python -m experiments.sweep --config=configs/split_mnist.py:task \
    [--strategies=ewc,si] [--workdir=DIR] [--config.field=value]

The config's file holds ``sweep()``: row -> field -> values; every combination of a
row's values is a run, in a folder of its own under the workdir, measured on the
validation examples. Settings that can be traced (strengths, rates) are trained at
once, as further lanes beside the seeds. Broken off, the same command goes on.
A field with one value is only set: ``data.tasks`` to choose on the first tasks of a
stream and report the others, ``seeds`` to choose with seeds that no result uses.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.table import Table

from experiments import config as configs
from experiments import launch
from experiments.compare import row_config
from experiments.run import Part, execute, execute_together, finished, stopped
from jaxcl import metrics
from jaxcl.training.problem import validate
from jaxcl.training.programs import can_trace
from jaxcl.training.protocol import Interrupted

from ..reporting.scores import LABELS
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


class Score(NamedTuple):
    """What a run says of its settings, on validation data."""

    point: Point
    accuracy: metrics.Interval  # ACC
    forgetting: metrics.Interval
    best: bool  # of its row


def main(argv: Sequence[str]) -> int:
    file, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    module = launch.load(Path(file))
    if not hasattr(module, "sweep"):
        raise ValueError(f"{file} has no sweep(): row -> field -> values")
    grid = module.sweep()
    rows = _ROWS.value or list(grid)
    workdir = Path(_WORKDIR.value or Path("results") / f"{_CONFIG.value.name}_sweep")
    found = points({row: row_grid(grid, row) for row in rows}, row_config)
    for point in found:  # every mistake is found before anything runs
        validate(configs.problem(point.config))
    try:
        results = run_points(found, workdir)
    except Interrupted:
        return stopped(workdir)
    if launch.is_main_process():
        scores = rank(found, results)
        (workdir / "sweep.csv").write_text(csv_table(scores))
        text = text_table(scores)
        (workdir / "sweep.txt").write_text(text)
        print(text)
    return 0


def row_grid(grid: Grid, row: str) -> Mapping[str, Sequence[Any]]:
    """A row's part of the grid.

    Raises:
      ValueError: it has none.
    """
    if row not in grid:
        raise ValueError(f"sweep() has no row {row!r}; it has {', '.join(grid)}")
    return grid[row]


def points(grid: Grid, make_config: Callable[[str], ConfigDict]) -> list[Point]:
    """Every combination of every row's values, as configs measured on validation data.

    Args:
      grid: row -> field -> values.
      make_config: row -> its config.

    Returns:
      The points, row by row, the last field changing fastest.

    Raises:
      ValueError: a field that the config does not have, or one without values.
    """
    found = []
    for row, fields in grid.items():
        for field, values in fields.items():
            if not isinstance(values, (tuple, list)) or not values:
                raise ValueError(
                    f"sweep, {row}: {field} needs a list of values, got {values!r}"
                )
        for chosen in itertools.product(*fields.values()):
            config = make_config(row)
            config.measure = "valid"
            for field, value in zip(fields, chosen, strict=True):
                # A setting without a default is not in the config yet.
                if not field.startswith("method.") and not _has(config, field):
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


def run_points(found: Sequence[Point], workdir: Path) -> list[Result]:
    """Runs what has not run yet, points that can be together in one compilation.

    Args:
      found: the points.
      workdir: gets a folder ROW/SETTINGS for each.

    Returns:
      Their results, in their order.

    Raises:
      Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    folders = [workdir / point.config.row / point.name for point in found]
    results: dict[int, Result] = {}
    for i, (point, folder) in enumerate(zip(found, folders, strict=True)):
        done = finished(point.config, folder)
        if done is not None:
            results[i] = done
    left = [i for i in range(len(found)) if i not in results]
    for group in together([found[i].config for i in left]):
        group = [left[k] for k in group]
        parts = [Part(found[i].config, folders[i]) for i in group]
        problem = joined([part.config for part in parts])
        if len(parts) > 1 and can_trace(problem):
            name = hashlib.sha256(" ".join(p.workdir.name for p in parts).encode())
            state = workdir / found[group[0]].config.row / f"of_{name.hexdigest()[:8]}"
            results |= zip(group, execute_together(problem, parts, state), strict=True)
        else:
            results |= {i: execute(found[i].config, folders[i]) for i in group}
    return [results[i] for i in range(len(found))]


def rank(found: Sequence[Point], results: Sequence[Result]) -> list[Score]:
    """Scores the runs; the best of a row has the fewest failed seeds, then most ACC."""
    scores = [
        Score(
            point,
            metrics.interval(metrics.average_accuracy(result.matrix)),
            metrics.interval(metrics.forgetting(result.matrix)),
            False,
        )
        for point, result in zip(found, results, strict=True)
    ]
    best: dict[str, int] = {}
    for i, score in enumerate(scores):
        row = score.point.config.row
        if row not in best or _merit(score) > _merit(scores[best[row]]):
            best[row] = i
    return [s._replace(best=i in best.values()) for i, s in enumerate(scores)]


def _merit(score: Score) -> tuple[int, float]:
    accuracy = score.accuracy
    return -accuracy.failed, accuracy.mean if accuracy.n else -1.0


def text_table(scores: Sequence[Score]) -> str:
    """The sweep as plain text, the best of each row marked."""
    table = Table(title="On validation data; * the best of its method", box=None)
    table.add_column("Method")
    table.add_column("Settings")
    for head in ("ACC %", "Forgetting %", "Failed"):
        table.add_column(head, justify="right")
    for s in scores:
        table.add_row(
            LABELS.get(s.point.config.row, s.point.config.row),
            s.point.name + (" *" if s.best else ""),
            _percent(s.accuracy),
            _percent(s.forgetting),
            f"{s.accuracy.failed}/{s.accuracy.n + s.accuracy.failed}",
        )
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def csv_table(scores: Sequence[Score]) -> str:
    """The sweep as CSV, shares not percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "settings", "acc", "acc_std", "forgetting", "seeds", "failed", "best"]
    )
    for s in scores:
        a = s.accuracy
        writer.writerow(
            [
                s.point.config.row,
                s.point.name,
                a.mean,
                a.std,
                s.forgetting.mean,
                a.n + a.failed,
                a.failed,
                int(s.best),
            ]
        )
    return out.getvalue()


def _percent(interval: metrics.Interval) -> str:
    if not interval.n:
        return "–"
    spread = f" ± {100 * interval.std:.2f}" if interval.n > 1 else ""
    return f"{100 * interval.mean:.2f}{spread}"


def _plain(value: Any) -> str:
    """A value in a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("/", "_").replace(" ", "")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/NAME_sweep.")
    _ROWS = flags.DEFINE_list("strategies", None, "Rows; by default all of sweep().")
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "FILE or FILE:variant; fields are --config.field=value."
    )
    flags.mark_flag_as_required("config")
    launch.run(main)
