"""The numbers of a comparison as CSV: per method, per seed, and every accuracy."""

import math
from collections.abc import Iterator, Sequence

from jaxcl import statistics
from jaxcl.strategies import family

from ..runs.results import OK
from .scores import METRICS, STATISTICS, Row
from .tables import csv_pieces, write_csv


def csv_table(table: Sequence[Row]) -> str:
    """Raw numbers, one line per method; accuracies in [0, 1], empty if undefined."""
    header = ["method", "row", "family", "config", "scenario", "tasks", "tasks_done"]
    header += ["seeds", "failed", *(f"{m}_{s}" for m in METRICS for s in STATISTICS)]
    header += ["p_vs_bp", "difference_vs_bp", "pairs_vs_bp", "wall_s", "steps"]
    lines = []
    for row in table:
        r, nan = row.result, float("nan")
        test = row.test or statistics.PairedTest(nan, nan, 0)
        line = [row.label, r.row, family(r.row), r.config_name, r.scenario]
        line += [len(r.task_names), r.tasks_done, len(r.seeds), len(row.failed)]
        line += [x for m in METRICS for x in row.intervals[m][: len(STATISTICS)]]
        lines.append([*line, test.p, test.difference, test.n, r.wall_s, r.steps])
    return write_csv(header, lines)


def csv_seeds(table: Sequence[Row]) -> str:
    """Raw numbers, one line per method and seed."""
    header = ["method", "row", "config", "scenario", "seed", *METRICS, "status"]
    lines = [
        [row.label, row.result.row, row.result.config_name, row.result.scenario, seed]
        + [float(row.scores[m][k]) for m in METRICS]
        + [row.result.status[k]]
        for row in table
        for k, seed in enumerate(row.result.seeds)
    ]
    return write_csv(header, lines)


def csv_results(table: Sequence[Row]) -> Iterator[str]:
    """The accuracy matrices in long form: one line per seed, trained task and task.

    In pieces: a thousand tasks and five seeds are five million lines.

    Tasks count from 1; "after task 0" is the untrained network. Accuracies lie in
    [0, 1]; those of a failed seed are empty. What has not run yet, or was not measured
    of a healthy seed, has no line.
    """

    def lines() -> Iterator[Sequence[object]]:
        for row in table:
            r = row.result
            for k, seed in enumerate(r.seeds):
                for after in range(r.tasks_done + 1):
                    values = r.matrix[k, after - 1] if after else r.baseline[k]
                    for j, value in enumerate(values.tolist(), 1):
                        if math.isnan(value) and r.status[k] == OK:
                            continue
                        yield row.label, seed, after, j, value, r.row, r.config_name

    header = ["method", "seed", "after_task", "on_task", "accuracy", "row", "config"]
    return csv_pieces(header, lines())
