"""Files of somebody else in a folder: a run or a report does not write over them."""

from __future__ import annotations

from pathlib import Path

from .machine import UsageError
from .plain_json import read_json
from .results import CONFIG_NAME

SWEEP = "sweep.csv"
FIGURES = (
    *("bars", "tasks", "matrix", "space", "capacity", "rank", "cka", "probes"),
    *("confusion", "own"),
)
TABLES = (
    "table.csv",
    "table.md",
    "table.tex",
    "table.txt",
    "seeds.csv",
    "results.csv",
)
WRITTEN = (
    "metrics.jsonl",
    "matrix.npy",
    *TABLES,
    "features.csv",
    "features.txt",
    *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
)
"""What a run and a report write over, or remove, by these names."""

# How the tables of a report, and the log of a run killed at its start, begin.
_BEGINNINGS = (
    ("results.csv", "method,seed,after_task,on_task,accuracy"),
    ("table.csv", "method,row,family,config,scenario,"),
    ("table.csv", "method,row,config,scenario,"),  # of 0.1
    ("metrics.jsonl", '{"task": 0, "ep'),  # the line may be torn
)


def require_own(folder: Path) -> None:
    """Refuses a folder where files of somebody else would be written over.

    A folder is ours if it has a run's config or a report's tables. Other files in it,
    as a log, do not matter.

    Raises:
      UsageError: the message names a file.
    """
    there = [name for name in WRITTEN if (folder / name).exists()]
    ours = (folder / CONFIG_NAME).exists() or any(
        _begins(folder / name, text) for name, text in _BEGINNINGS
    )
    if there and not ours:
        raise UsageError(
            f"{folder / there[0]} is there and of no run or report, it would be "
            "written over; use another folder"
        )


def require_no_run(folder: Path) -> None:
    """Refuses a run's own folder, or a sweep's, for the tables of several runs.

    Raises:
      UsageError: the message says whose folder it is.
    """
    whose = {CONFIG_NAME: "a run's own", SWEEP: "a sweep's"}
    for name, kind in whose.items():
        if (folder / name).exists():
            raise UsageError(
                f"{folder} is {kind} folder: its tables would be written over or mixed "
                "up; use another --workdir"
            )


def require_no_comparison(folder: Path) -> None:
    """Refuses the folder of a run or of a comparison for a sweep.

    Raises:
      UsageError: the message says whose folder it is.
    """
    if (folder / CONFIG_NAME).exists():
        raise UsageError(f"{folder} is a run's own folder; use another --workdir")
    runs = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_NAME}"))
    if runs:  # a sweep's are one level further down
        raise UsageError(
            f"{folder} is a comparison's folder, its runs are {', '.join(runs)}; use "
            "another --workdir"
        )


def require_own_output(folder: Path, *names: str) -> None:
    """Refuses a folder where a command's output would replace somebody else's files.

    The folder is the command's if there are runs in it, or if the JSON file among
    `names` says from which command and runs it came.

    Args:
      folder: of the command, which trains rows in folders inside it.
      names: what the command writes there.

    Raises:
      UsageError: the message names a file.
    """
    there = [name for name in names if (folder / name).exists()]
    ours = any(any(folder.glob(f"{at}/{CONFIG_NAME}")) for at in ("*", "*/*")) or any(
        _has_origin(folder / name) for name in there if name.endswith(".json")
    )
    if there and not ours:
        raise UsageError(
            f"{folder / there[0]} is there and not of this command, it would be "
            "written over; use another --workdir"
        )


def _has_origin(file: Path) -> bool:
    try:
        return {"arguments", "runs"} <= read_json(file).keys()
    except (OSError, ValueError):
        return False


def require_page(file: Path, title: str) -> None:
    """Refuses to write a page over a file that is no such page.

    Args:
      file: where the page is written.
      title: its first line.

    Raises:
      UsageError: the file exists and begins otherwise.
    """
    if file.exists() and not _begins(file, title):
        raise UsageError(
            f"{file} is there and is no page of this command ({title}); use another "
            "folder"
        )


def _begins(file: Path, text: str) -> bool:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(len(text)) == text
    except OSError:
        return False
