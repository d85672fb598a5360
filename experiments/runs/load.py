"""Finds and loads the runs under given folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import results
from .foreign import SWEEP
from .results import Result

# Files of a run's folder before its first task has ended.
STARTED = ("config.json", "metrics.jsonl")
EXPECTED = (
    f"a run's folder (with {results.FILE_NAME}) or a comparison's (whose sub-folders "
    f"are runs)"
)


def find(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Loads every result under run and comparison folders; each once.

    Args:
      folders: run folders and comparison folders, mixed.

    Returns:
      The results, and a sentence on every run that has started but has no result yet.

    Raises:
      FileNotFoundError: a folder is missing or holds no run.
      ValueError: a result cannot be read.
    """
    found: dict[Path, Result] = {}
    pending: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected {EXPECTED}")
        runs = [folder] if (folder / results.FILE_NAME).is_file() else []
        # A comparison may hold a config.json of its own: look into it first.
        runs = runs or [run for run in sorted(folder.iterdir()) if _is_run(run)]
        runs = runs or ([folder] if _is_run(folder) else [])
        if not runs:
            raise FileNotFoundError(f"{folder}: {_instead(folder)}")
        for run in runs:
            key = run.resolve()
            if (run / results.FILE_NAME).is_file():
                found.setdefault(key, results.load(run))
            else:
                pending[key] = f"{run}: left out, its first task has not ended yet."
    if not found:
        raise FileNotFoundError(
            f"{folders[0]}: no {results.FILE_NAME} yet; expected {EXPECTED}"
        )
    return list(found.values()), list(pending.values())


def _instead(folder: Path) -> str:
    """What a folder without runs is, or what is expected in its place."""
    rows = sorted(
        {str(f.parents[1]) for f in folder.glob(f"*/*/{results.CONFIG_NAME}")}
    )
    if (folder / SWEEP).is_file():
        return (
            f"a sweep's folder: its table is {SWEEP}; its runs are in "
            f"{', '.join(rows) or 'none'}, which a report takes"
        )
    if rows:
        return f"holds no run, but these in it do: {', '.join(rows)}"
    return f"holds no run; expected {EXPECTED}"


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (results.FILE_NAME, *STARTED))
