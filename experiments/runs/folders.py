"""A run's folder: it belongs to one config, and one process at a time uses it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcl import files
from jaxcl.training import saved
from jaxcl.training.fingerprint import (
    FILE_OF,
    Fingerprint,
    foreign,
    in_words,
    otherwise_made,
)

from .. import config as configs
from . import machine
from .foreign import SWEEP, require_own
from .plain_json import read_json
from .results import CONFIG_NAME, FILE_NAME

# Fields that change no result: how often to save, how to lay out seeds, what `compare`
# runs, and where else numbers are written.
CHANGES_NOTHING = frozenset({"checkpoint_every", "seed_mode", "rows", "write_to"})


class Part(NamedTuple):
    """One config's run: the config, with its seeds, and the run's folder."""

    config: ConfigDict
    workdir: Path


def identity(parts: Sequence[Part]) -> dict[str, str]:
    """Field -> value: what a saved state must agree with to belong to these parts.

    Fields that change no result are left out. So are fields at their default: a state
    may be older than a field, and then was made with its default.
    """
    found: dict[str, str] = {}
    for part in parts:
        lines = _lines(part.config)
        default = _text(configs.neutral(part.config.strategy))
        prefix = f"{part.workdir.name}: " if len(parts) > 1 else ""
        for field, value in lines.items():
            if value != default.get(field):
                found[prefix + field] = value
    return found


def require_ours(parts: Sequence[Part], state: Path) -> None:
    """Refuses folders that belong to other runs or that other processes use.

    Args:
      parts: the runs whose folders are checked.
      state: folder of the checkpoints that the parts share.

    Raises:
      UsageError: the message names the folder, and what differs or who uses it.
    """
    for part in parts:
        require_same(part.config, part.workdir)
        # On several hosts the main process may already have taken the folder.
        used = machine.is_main_process() and files.in_use(part.workdir)
        if used:
            raise machine.UsageError(used)
    there = saved.peek(state)
    if there is not None:
        _compare(state, there, identity(parts))
        return
    for part in parts:
        require_own(part.workdir)
        result, config = (part.workdir / n for n in (FILE_NAME, CONFIG_NAME))
        inside = "" if config.exists() else runs_in(part.workdir)
        if inside:  # its tables would be written over, and its runs no longer found
            raise machine.UsageError(
                f"{part.workdir} is no run's folder{inside}; use another --workdir"
            )
        if result.exists() and not config.exists():
            raise machine.UsageError(
                f"{result} has no {CONFIG_NAME} beside it that says whose it is; use "
                "another --workdir"
            )


def require_unchanged(state: Path, now: Fingerprint, *, strict: bool) -> None:
    """Refuses a finished run of other data; warns if its own functions have changed.

    Args:
      state: folder of the run's states.
      now: the fingerprint of the run as it would be now.
      strict: refuses a run that other code or other versions have made.

    Raises:
      CheckpointError: the finished run is of another problem, or refused by `strict`.
    """
    there = _finished(state)
    if there is None:
        return
    differences = foreign(there, now)
    if differences:
        raise saved.CheckpointError(
            f"the finished run of {state.parent} is of another problem: "
            f"{in_words(differences, there, now)}; use another --workdir"
        ) from ValueError("; ".join(differences))  # for JAXCL_TRACEBACK
    made_by = otherwise_made(there, now)
    if made_by and strict:
        raise saved.CheckpointError(
            f"the finished run of {state.parent} was made otherwise: "
            f"{'; '.join(made_by)}; without --strict its result is taken"
        )
    if own := _of_own_files(made_by):
        warnings.warn(
            f"the run of {state.parent} was finished before and is not run again: "
            f"{'; '.join(own)}; another --workdir runs it as it is now",
            stacklevel=2,
        )


def warn_if_not_written(part: Part) -> None:
    """Warns if a finished run is to write to places that it did not write to."""
    wanted = part.config.write_to
    before = read_json(part.workdir / CONFIG_NAME).get("write_to", "")
    if wanted and wanted != before:
        warnings.warn(
            f"the run of {part.workdir} was finished before and writes nothing to "
            f"{wanted}; another --workdir runs it again",
            stacklevel=2,
        )


def warn_if_changed(state: Path, now: Fingerprint) -> None:
    """Warns if a run's data or own functions are no longer those that it ran with.

    Args:
      state: folder of the run's states; without one nothing is known.
      now: the fingerprint of the run as it would be now.
    """
    there = _finished(state)
    if there is None:
        return
    differences = foreign(there, now)
    changed = [in_words(differences, there, now)] if differences else []
    changed = changed or _of_own_files(otherwise_made(there, now))
    if changed:
        warnings.warn(
            f"the run of {state.parent} is opened with other data or code than it ran "
            f"with: {'; '.join(changed)}; what it recorded stays, what is computed "
            "anew (data, forward pass, accuracies) is of today's",
            stacklevel=4,
        )


def _finished(state: Path) -> Fingerprint | None:
    about = saved.newest(state)
    return None if about is None else Fingerprint(**about["fingerprint"])


def _of_own_files(made_by: Sequence[str]) -> list[str]:
    """Differences in a user's own files.

    A new version of this package does not make each finished run doubtful.
    """
    return [words for words in made_by if words.startswith(FILE_OF)]


def runs_in(folder: Path) -> str:
    """The runs' folders in a folder of `compare` or `sweep`, for a message."""
    at = "*/*" if (folder / SWEEP).exists() else "*"
    runs = [file.parent for file in folder.glob(f"{at}/{CONFIG_NAME}")]
    found = sorted(run.relative_to(folder).as_posix() for run in runs)
    return f", but these in it are: {', '.join(found)}" if found else ""


def require_same(config: ConfigDict, workdir: Path) -> None:
    """Refuses a folder whose config.json is of another config.

    Raises:
      UsageError: the message says what differs.
    """
    file = workdir / CONFIG_NAME
    if not file.exists():
        return
    try:
        theirs = _lines(read_json(file))
    except ValueError as error:
        raise machine.UsageError(f"{error}; or use another --workdir") from error
    _compare(workdir, theirs, _lines(config))


def claim(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json, which marks the folder as this config's."""
    fields = json.loads(config.to_json_best_effort())
    text = json.dumps(fields, indent=1, sort_keys=True)
    files.write_whole(workdir / CONFIG_NAME, text + "\n")


def _lines(config: ConfigDict | dict[str, Any]) -> dict[str, str]:
    return _text(configs.spelled_out(config))


def _text(fields: Mapping[str, Any]) -> dict[str, str]:
    return {
        field: repr(value)
        for field, value in fields.items()
        if field not in CHANGES_NOTHING
    }


def _compare(folder: Path, theirs: dict[str, str], ours: dict[str, str]) -> None:
    different = [
        f"{key} is {theirs.get(key, 'by default')} there and "
        f"{ours.get(key, 'by default')} now"
        for key in sorted(theirs | ours)
        if theirs.get(key) != ours.get(key)
    ]
    if different:
        raise machine.UsageError(
            f"{folder} holds a run of another config: {'; '.join(different)}; "
            "use another --workdir"
        )
