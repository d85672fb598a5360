"""Writes all tables and figures of a set of results into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxcl import _interrupts, files

from ..runs import results
from ..runs.results import Result
from . import csv_files, feature_scores, figures, latex, scores, tables

FEATURES = {
    "features.txt": feature_scores.text_table,
    "features.csv": feature_scores.csv_table,
}


def build(found: Sequence[Result], out: Path, notes: Sequence[str] = ()) -> str:
    """Writes all tables and figures.

    Args:
      found: the results, at least one; rows may differ in config, scenario and T.
      out: the folder to write into; made if missing.
      notes: further footnotes.

    Returns:
      The table as plain text, as in `table.txt`.

    Raises:
      ValueError: there is no result, or one has a wrong shape.
    """
    if not found:
        raise ValueError("a report needs at least one result, got none")
    _interrupts.check()
    table = _rows(found)
    out.mkdir(parents=True, exist_ok=True)
    text = tables.text_table(table, notes)
    files.write_whole(out / "table.txt", text)
    files.write_whole(out / "table.md", tables.markdown_table(table, notes))
    files.write_whole(out / "table.tex", latex.latex_table(table, notes))
    files.write_whole(out / "table.csv", csv_files.csv_table(table))
    files.write_whole(out / "seeds.csv", csv_files.csv_seeds(table))
    files.write_whole(out / "results.csv", csv_files.csv_results(table))
    seen = feature_scores.measured_rows(table)
    for name, write in FEATURES.items():
        if seen:
            files.write_whole(out / name, write(seen))
        else:
            # A file of an earlier report would seem to belong to this one.
            (out / name).unlink(missing_ok=True)
    figures.write(table, out)
    return text


def console_table(found: Sequence[Result], notes: Sequence[str] = ()) -> None:
    """Prints the table: coloured and as wide as a terminal, plain text elsewhere.

    Args:
      found: the results.
      notes: further footnotes.
    """
    tables.print_table(_rows(found), notes)


def _rows(found: Sequence[Result]) -> list[scores.Row]:
    return scores.rows(
        results.check(r, f"result of {r.row!r} on {r.config_name!r}") for r in found
    )
