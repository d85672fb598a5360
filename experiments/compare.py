r"""Runs several methods on one benchmark: one table, one figure.

python -m experiments.compare --config=configs/digits.py \
    [--strategies=bp,bp_star,bp_star_star,ewc] [--workdir=DIR] [--config.field=value]

Each method is a run in a folder of its own under the workdir; runs that are finished
there are not run again. A field on the command line applies to every method. A setting
of a method (--config.method.NAME) applies only to the method after the colon, which is
a row of the table of methods or an import path:

python -m experiments.compare --config=digits:my_package.methods:l2 \
    --strategies=ewc,my_package.methods:l2 --config.method.strength=3.0

--for sets a field of one row alone, and may be given many times:

python -m experiments.compare --config=digits --strategies=ewc,hat \
    --for=ewc:method.strength=100 --for=hat:method.strength=0.1 \
    --for=hat:optimizer.lr=0.1

--print_config prints every row's config in effect and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from jaxcl.training.protocol import Interrupted

from . import launch
from .config import folder, in_effect
from .launch_rows import define_rows, row_configs
from .reporting.build import build, console_table
from .runs import machine
from .runs.execute import carry_out, prepare
from .runs.foreign import require_no_run, require_own


def main(argv: Sequence[str]) -> int:
    shared = _CONFIG.value
    rows = _ROWS.value or list(shared.rows)
    workdir = launch.folder(_WORKDIR.value, shared.name)
    configs = row_configs(rows)
    if _PRINT.value:
        print("\n\n".join(map(in_effect, configs)))
        return 0
    # Mistakes, and folders that belong to others, are found before anything runs.
    require_own(workdir)
    require_no_run(workdir)
    jobs = [prepare(config, workdir / folder(config.row)) for config in configs]
    try:
        results = [r for job in jobs for r in carry_out(job, strict=launch.strict())]
    except Interrupted:
        return launch.stopped(workdir)
    if machine.is_main_process():
        build(results, workdir)
        console_table(results)
        print(f"table and figures: {workdir}")
    return launch.ended(results)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/NAME.")
    _ROWS = define_rows(None, "Rows; by default the config's own.")
    _CONFIG = launch.define_config("variant")
    _PRINT = flags.DEFINE_bool("print_config", False, "Print configs, run nothing.")
    launch.run(main)
