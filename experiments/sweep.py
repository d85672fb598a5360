r"""Chooses settings: runs a grid of them, measured on validation data, into one table.

python -m experiments.sweep --config=configs/split_mnist.py:task \
    [--strategies=ewc,si] [--workdir=DIR] [--config.field=value]
python -m experiments.sweep --config=digits:ewc \
    --grid="method.strength=1,10,100" --grid="optimizer.lr=0.01,0.05"

The grid is the config file's ``sweep()``, row -> field -> values. With ``--grid`` it is
that grid instead, for the rows of ``--strategies`` or the row that ``--config`` names;
``--grid=ROW:FIELD=VALUE,...`` is for one of them alone, as strengths differ in scale.
Every combination of a row's values is a run, in a folder of its own under the workdir,
measured on the validation examples. Settings that can be traced (strengths, rates) are
trained together, as if they were more seeds. After an interruption the same command
continues. The best settings are printed as flags for `compare`, which takes them with
the same --config. A field with one value is set to it in every run. For example,
``data.tasks`` chooses on the first tasks of a stream and leaves the others for the
report, and ``seeds`` chooses with seeds that no result uses.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from jaxcl import files
from jaxcl.benchmark import load
from jaxcl.training.protocol import Interrupted

from . import inert, launch
from .launch_rows import define_rows, row_configs
from .reporting.sweeps import chosen, csv_table, rank, text_table
from .runs import grid, machine
from .runs.foreign import SWEEP, require_no_comparison, require_own_output
from .runs.results import OK


def main(argv: Sequence[str]) -> int:
    whole = _grid(_ROWS.value, _GRID.value)
    rows = _ROWS.value or list(whole)
    workdir = launch.folder(_WORKDIR.value, f"{_CONFIG.value.name}_sweep")
    by_row = {row: grid.row_grid(whole, row) for row in rows}
    found = grid.points(by_row, row_configs(rows))
    varied = [field for point in found for field in point.varied]
    inert.refuse(varied, [point.config for point in found])
    require_own_output(workdir, SWEEP, "sweep.txt")
    require_no_comparison(workdir)
    prepared = grid.prepare_points(found, workdir)
    try:
        results = grid.run_points(prepared, strict=launch.strict())
    except Interrupted:
        return launch.stopped(workdir)
    if machine.is_main_process():
        scores = rank([point.name for point in found], results)
        files.write_whole(workdir / SWEEP, csv_table(scores))
        flags_of_best, notes = chosen([point.varied for point in found], scores)
        of_best = f"The best, for compare: {' '.join(flags_of_best)}"
        text = "\n".join([text_table(scores), "", *notes, of_best, ""])
        files.write_whole(workdir / "sweep.txt", text)
        print(text)
    # Some settings of a sweep may diverge: finding that out is its purpose.
    healthy = any(status == OK for result in results for status in result.status)
    return 0 if healthy else launch.ended(results)


def _grid(rows: Sequence[str] | None, given: Sequence[str]) -> grid.Grid:
    """The grid that --grid gives for the rows, or the config file's ``sweep()``."""
    if not given:
        file, _ = launch.config_file()
        module = load(file)
        if not hasattr(module, "sweep"):
            raise ValueError(f"{file} has no sweep(): row -> field -> values")
        try:
            found = module.sweep()
        except Exception as error:
            raise ValueError(f"{file}: sweep() raised {error!r}") from error
        return grid.require_grid(found, f"{file}: sweep()")
    rows = rows or [str(_CONFIG.value.row)]
    fields: dict[str, dict[str, tuple]] = {"": {}}  # of all rows, and of one alone
    for text in given:
        for name, values in grid.parsed(text).items():
            # A row may be "package:name"; what is no text is refused below.
            is_text = isinstance(name, str)
            row, _, field = name.rpartition(":") if is_text else ("", "", name)
            if row and row not in rows:
                raise ValueError(f"--grid={name}: the rows are {', '.join(rows)}")
            if field in fields.setdefault(row, {}):
                raise ValueError(f"--grid gives {name} twice")
            fields[row][field] = values
    return grid.require_grid(
        {r: fields[""] | fields.get(r, {}) for r in rows}, "--grid"
    )


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/NAME_sweep.")
    _ROWS = define_rows(None, "Rows; by default all of sweep().")
    _GRID = flags.DEFINE_multi_string(
        "grid", [], "[ROW:]FIELD=VALUE,VALUE,...; several make every combination."
    )
    _CONFIG = launch.define_config("variant")
    launch.run(main)
