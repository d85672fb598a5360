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

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxcl.training.protocol import Interrupted

from . import launch
from .reporting.sweeps import csv_table, rank, text_table
from .runs import grid, machine


def main(argv: Sequence[str]) -> int:
    file, _ = launch.config_file()
    module = launch.load(file)
    if not hasattr(module, "sweep"):
        raise ValueError(f"{file} has no sweep(): row -> field -> values")
    whole = module.sweep()
    rows = _ROWS.value or list(whole)
    workdir = Path(_WORKDIR.value or Path("results") / f"{_CONFIG.value.name}_sweep")
    configs = launch.row_configs(rows)
    found = grid.points({row: grid.row_grid(whole, row) for row in rows}, configs)
    prepared = grid.prepare_points(found, workdir)
    try:
        results = grid.run_points(prepared)
    except Interrupted:
        return launch.stopped(workdir)
    if machine.is_main_process():
        scores = rank([point.name for point in found], results)
        (workdir / "sweep.csv").write_text(csv_table(scores))
        text = text_table(scores)
        (workdir / "sweep.txt").write_text(text)
        print(text)
    return 0


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/NAME_sweep.")
    _ROWS = flags.DEFINE_list("strategies", None, "Rows; by default all of sweep().")
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "NAME, FILE or FILE:variant; fields are --config.field=value."
    )
    flags.mark_flag_as_required("config")
    launch.run(main)
