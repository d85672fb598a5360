r"""Runs several methods on one benchmark: one table, one figure.

python -m experiments.compare --config=configs/digits.py \
    [--strategies=bp,bp_star,bp_star_star,ewc] [--workdir=DIR] [--config.field=value]

Each method is a run in a folder of its own under the workdir; those already finished
there are not run again. A field given on the command line holds for every method; a
setting of a method for the one that is named after the colon, a row of the table or an
import path:

python -m experiments.compare --config=digits:my_package.methods:l2 \
    --strategies=ewc,my_package.methods:l2 --config.method.strength=3.0

--print_config prints every row's config in effect and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxcl.training.protocol import Interrupted

from . import launch
from .config import folder, in_effect
from .reporting.build import build, console_table
from .runs import machine
from .runs.execute import carry_out, prepare


def main(argv: Sequence[str]) -> int:
    shared = _CONFIG.value
    rows = _ROWS.value or list(shared.rows)
    workdir = Path(_WORKDIR.value or Path("results") / shared.name)
    configs = launch.row_configs(rows)
    if _PRINT.value:
        print("\n\n".join(map(in_effect, configs)))
        return 0
    # Every mistake, and every folder that is another run's, is found first.
    jobs = [prepare(config, workdir / folder(config.row)) for config in configs]
    try:
        results = [r for job in jobs for r in carry_out(job, strict=launch.strict())]
    except Interrupted:
        return launch.stopped(workdir)
    if machine.is_main_process():
        build(results, workdir)
        console_table(results)
        print(f"table and figures: {workdir}")
    return 0


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/NAME.")
    _ROWS = flags.DEFINE_list("strategies", None, "Rows; by default the config's own.")
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "NAME, FILE or FILE:variant; fields are --config.field=value."
    )
    _PRINT = flags.DEFINE_bool("print_config", False, "Print configs, run nothing.")
    flags.mark_flag_as_required("config")
    launch.run(main)
