"""A sweep's table: each setting's result on validation data, with the best marked."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxcl import metrics, statistics
from jaxcl.strategies import label

from ..runs.results import Result
from .tables import write_csv


class Score(NamedTuple):
    """A run's result on validation data, for its settings."""

    row: str
    settings: str  # in words
    accuracy: statistics.Interval  # ACC
    forgetting: statistics.Interval
    best: bool  # whether it is the best of its row


def rank(settings: Sequence[str], results: Sequence[Result]) -> list[Score]:
    """Scores the runs; a row's best has fewest failed seeds, then the highest ACC.

    Args:
      settings: of each run, in words.
      results: of the runs.
    """
    scores = [
        Score(
            result.row,
            name,
            statistics.interval(metrics.average_accuracy(result.matrix)),
            statistics.interval(metrics.forgetting(result.matrix)),
            False,
        )
        for name, result in zip(settings, results, strict=True)
    ]
    best: dict[str, int] = {}
    for i, score in enumerate(scores):
        if score.row not in best or _merit(score) > _merit(scores[best[score.row]]):
            best[score.row] = i
    return [s._replace(best=i in best.values()) for i, s in enumerate(scores)]


def chosen(
    varied: Sequence[Mapping[str, Any]], scores: Sequence[Score]
) -> tuple[list[str], list[str]]:
    """The best settings as flags of `compare`, and which lie at an end of their grid.

    Args:
      varied: of each run, field -> value.
      scores: of the runs.

    Returns:
      ``--for=ROW:FIELD=VALUE`` for each field of each row's best, and a note for each
      whose value is the lowest or highest of at least three.
    """
    flags, notes = [], []
    for best, score in zip(varied, scores, strict=True):
        for field, value in best.items() if score.best else ():
            word = f"--for={score.row}:{field}={value!r}".replace(" ", "")
            flags.append(shlex.quote(word))
            tried = {
                v[field]
                for v, other in zip(varied, scores, strict=True)
                if other.row == score.row and isinstance(v[field], int | float)
            }
            if len(tried) > 2 and value in (min(tried), max(tried)):
                side = "lowest" if value == min(tried) else "highest"
                notes.append(
                    f"{label(score.row)}: {field} {value} is the {side} tried; a "
                    "better one may lie beyond"
                )
    return flags, notes


def _merit(score: Score) -> tuple[int, float]:
    accuracy = score.accuracy
    return -accuracy.failed, accuracy.mean if accuracy.n else -1.0


def text_table(scores: Sequence[Score]) -> str:
    """The sweep as plain text, with the best of each row marked."""
    table = Table(title="On validation data; * the best of its method", box=None)
    table.add_column("Method")
    table.add_column("Settings")
    for head in ("ACC %", "Forgetting %", "Failed"):
        table.add_column(head, justify="right")
    for s in scores:
        table.add_row(
            Text(label(s.row)),
            Text(s.settings + (" *" if s.best else "")),
            _percent(s.accuracy),
            _percent(s.forgetting),
            f"{s.accuracy.failed}/{s.accuracy.n + s.accuracy.failed}",
        )
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def csv_table(scores: Sequence[Score]) -> str:
    """The sweep as CSV; accuracies are shares, not per cent."""
    header = ["row", "settings", "acc", "acc_std", "forgetting"]
    lines = []
    for s in scores:
        a = s.accuracy
        line = [s.row, s.settings, a.mean, a.std, s.forgetting.mean]
        lines.append([*line, a.n + a.failed, a.failed, int(s.best)])
    return write_csv([*header, "seeds", "failed", "best"], lines)


def _percent(interval: statistics.Interval) -> str:
    if not interval.n:
        return "–"
    spread = f" ± {100 * interval.std:.2f}" if interval.n > 1 else ""
    return f"{100 * interval.mean:.2f}{spread}"
