r"""Rebuilds tables and figures from the folders of finished and unfinished runs alone.

    python -m experiments.report DIR... [--out=FOLDER]

Each DIR is a run's folder (it holds `result.json`) or a comparison's (its sub-folders
are runs). Into the output folder, by default the first DIR, go `table.txt`, `table.md`,
`table.csv`, `seeds.csv`, `bars.png`, `tasks.png`, `matrix.png` and, where a method
reports the space it takes, `space.png`. The table is printed too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments import figures, results, scores, tables

from ..runs.results import Result

# What a run's folder holds before its first task has ended.
STARTED = ("config.json", "metrics.jsonl")


def find(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Loads every result under run and comparison folders; each once.

    Args:
      folders: run folders and comparison folders, mixed.

    Returns:
      The results, and a sentence on every run that has started but has none yet.

    Raises:
      FileNotFoundError: a folder is missing or holds no run.
      ValueError: a result cannot be read.
    """
    found: dict[Path, Result] = {}
    pending: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected {_EXPECTED}")
        runs = [folder] if (folder / results.FILE_NAME).is_file() else []
        # A comparison may hold a config.json of its own: look into it first.
        runs = runs or [run for run in sorted(folder.iterdir()) if _is_run(run)]
        runs = runs or ([folder] if _is_run(folder) else [])
        if not runs:
            raise FileNotFoundError(f"{folder}: holds no run; expected {_EXPECTED}")
        for run in runs:
            key = run.resolve()
            if (run / results.FILE_NAME).is_file():
                found.setdefault(key, results.load(run))
            else:
                pending[key] = f"{run}: left out, its first task has not ended yet."
    if not found:
        raise FileNotFoundError(
            f"{folders[0]}: no {results.FILE_NAME} yet; expected {_EXPECTED}"
        )
    return list(found.values()), list(pending.values())


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
    table = _rows(found)
    out.mkdir(parents=True, exist_ok=True)
    text = tables.text_table(table, notes)
    (out / "table.txt").write_text(text, encoding="utf-8")
    (out / "table.md").write_text(tables.markdown_table(table, notes), encoding="utf-8")
    (out / "table.csv").write_text(tables.csv_table(table), encoding="utf-8")
    (out / "seeds.csv").write_text(tables.csv_seeds(table), encoding="utf-8")
    figures.write(table, out)
    return text


def console_table(found: Sequence[Result], notes: Sequence[str] = ()) -> None:
    """Prints the table: coloured and fitted on a terminal, plain text elsewhere.

    Args:
      found: the results.
      notes: further footnotes.
    """
    tables.print_table(_rows(found), notes)


def main(argv: Sequence[str]) -> int:
    folders = [Path(arg) for arg in argv[1:]]
    try:
        if not folders:
            raise FileNotFoundError(f"no folder given; expected {_EXPECTED}")
        found, pending = find(folders)
        out = Path(flags.FLAGS.out) if flags.FLAGS.out else folders[0]
        build(found, out, pending)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    console_table(found, pending)
    print(f"\nTables and figures are in {out}")
    return 0


_EXPECTED = (
    f"a run's folder (with {results.FILE_NAME}) or a comparison's (whose sub-folders "
    f"are runs)"
)


def _rows(found: Sequence[Result]) -> list[scores.Row]:
    return scores.rows(
        results.check(r, f"result of {r.row!r} on {r.config_name!r}") for r in found
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (results.FILE_NAME, *STARTED))


if __name__ == "__main__":
    # Here, not at import: experiments.compare imports this module and has flags too.
    flags.DEFINE_string("out", None, "Output folder; by default the first DIR.")
    app.run(main)
