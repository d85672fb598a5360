"""The runs that a picture is made from: trained if they are missing, or given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcl.training.problem import Problem

from ..config import folder
from . import machine
from .execute import carry_out, finished, prepare
from .opened import Run, load_run
from .results import OK


def trained(
    configs: Sequence[ConfigDict],
    workdir: Path,
    *,
    strict: bool = False,
    suits: Callable[[Problem], object] = lambda problem: None,
) -> dict[str, Run]:
    """Row -> its run, in a folder of its own; finished runs are not run again.

    Args:
      configs: of the rows.
      workdir: the folder of all.
      strict: as in `jaxcl.training.protocol.run`.
      suits: shown each run's problem before one begins; raises if the picture cannot be
        made of it.

    Raises:
      As `prepare`, which checks all runs before one begins, and `carry_out`.
    """
    homes = {str(c.row): workdir / folder(str(c.row)) for c in configs}
    jobs = [prepare(config, homes[config.row]) for config in configs]
    for job in jobs:
        suits(job.problem)
    for config, job in zip(configs, jobs, strict=True):
        if finished(config, homes[config.row]) is None:
            carry_out(job, strict=strict)
    return {row: load_run(home) for row, home in homes.items()}


def given(folders: Sequence[str]) -> dict[str, Run]:
    """Row -> its run, from given folders.

    Raises:
      UsageError: a folder holds no run, or two are of one row.
    """
    found: dict[str, Run] = {}
    for name in folders:
        try:
            run = load_run(name)
        except FileNotFoundError as error:
            raise machine.UsageError(str(error)) from error
        if run.config.row in found:
            raise machine.UsageError(
                f"{found[run.config.row].workdir} and {run.workdir} are both of row "
                f"{run.config.row!r}; give one run of a row"
            )
        found[run.config.row] = run
    return found


def failed(runs: Mapping[str, Run]) -> dict[str, dict[int, str]]:
    """Row -> its failed seeds, each with what failed and when."""
    return {
        row: {
            seed: status
            for seed, status in zip(run.seeds, run.result.status, strict=True)
            if status != OK
        }
        for row, run in runs.items()
    }


def sound_seeds(runs: Mapping[str, Run]) -> list[int]:
    """The seeds, in the first run's order, that have failed in no run.

    Raises:
      UsageError: there is none.
    """
    bad = failed(runs)
    first = next(iter(runs.values()))
    found = [seed for seed in first.seeds if not any(seed in of for of in bad.values())]
    if not found:
        raise machine.UsageError(f"no seed is without a failure: {in_words(bad)}")
    return found


def in_words(bad: Mapping[str, Mapping[int, str]]) -> str:
    """Failed seeds in one line."""
    return "; ".join(
        f"{row}, seed {seed}: {status}"
        for row, of in bad.items()
        for seed, status in of.items()
    )


def origin(runs: Mapping[str, Run], arguments: Sequence[str]) -> dict[str, Any]:
    """Where a picture comes from, for the JSON file beside it.

    Args:
      runs: row -> its run.
      arguments: of the command, without its name; folders of this machine are left out.
    """
    results = {row: run.result for row, run in runs.items()}
    return {
        "arguments": told(arguments),
        "runs": {
            row: {
                "config": run.config.name,
                "seeds": list(run.seeds),
                "commit": results[row].versions.get("commit", "unknown"),
                "seconds": round(results[row].wall_s, 1),
                "device": results[row].device,
            }
            for row, run in runs.items()
        },
        "measured_with": dict(machine.versions()),
        "measured_on": machine.device(),
    }


def told(arguments: Sequence[str]) -> list[str]:
    """A command's arguments without the paths of this machine's folders."""
    found = []
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            file, colon, rest = value.partition(":")
            argument = f"--config={Path(file).stem}{colon}{rest}"
        if name not in ("workdir", "runs"):
            found.append(argument)
    return found
