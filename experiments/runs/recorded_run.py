"""What a run's folder has recorded; to read it needs neither data nor model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxcl import schema

from .. import config as configs
from . import folders, measured, results
from .plain_json import read_json
from .records import long_table
from .results import Result


class Recorded:
    """The config, results and measurements in a run's folder.

    Attributes:
      workdir: the folder.
      config: the run's config, with all fields.
      seeds: the run's seeds.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        file = workdir / results.CONFIG_NAME
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; {workdir} is no run's folder"
                f"{folders.runs_in(workdir)}"
            )
        self.config = configs.from_json(read_json(file))
        # The rest is checked where it is used: what was recorded needs no field of it.
        schema.require(f"{file}: seeds", self.config.seeds, schema.Seeds)
        self.seeds = tuple(self.config.seeds)

    @cached_property
    def result(self) -> Result:
        """Accuracies and the strategy's reports, of the finished tasks."""
        return results.load(self.workdir)

    @cached_property
    def measured(self) -> measured.Measured:
        """Arrays by "quantity/layer"; see `experiments.runs.measured.AXES`."""
        return measured.load(self.workdir)

    def records(self) -> list[dict[str, Any]]:
        """All measurements as a long table, for ``pandas.DataFrame``.

        Returns:
          A row per number; see `experiments.runs.records.long_table`.
        """
        return long_table(self.result, self.measured)

    @contextmanager
    def _telling_version(self) -> Iterator[None]:
        """Names the folder, and who wrote it, if this version cannot use its config."""
        try:
            yield
        except ValueError as error:
            file = self.workdir / results.FILE_NAME
            found = read_json(file).get("versions") if file.is_file() else None
            known = found if isinstance(found, dict) else {}
            by = f"jaxcl {known.get('jaxcl', 'of a version not recorded')}"
            by += f" (commit {known['commit']})" if "commit" in known else ""
            raise ValueError(
                f"{self.workdir}, written by {by}: {error}; what was recorded can be "
                "read: result, measured, records()"
            ) from error

    def _place(self, seed: int) -> int:
        if seed not in self.seeds:
            raise ValueError(f"the run has no seed {seed}; its seeds: {self.seeds}")
        return self.seeds.index(seed)
