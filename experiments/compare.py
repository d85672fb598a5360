r"""Runs several methods on one benchmark: one table, one figure.

python -m experiments.compare --config=configs/digits.py \
    [--strategies=bp,bp_star,bp_star_star,ewc] [--workdir=DIR] [--config.field=value]

Each method is a run in a folder of its own under the workdir; those already finished
there are not run again. A field given on the command line holds for every method; to
set one that only one method has, name that method: --config=configs/digits.py:ewc
--config.method.strength=3.0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import config as configs
from experiments import launch, report
from experiments.run import execute, stopped
from jaxcl.training.problem import validate
from jaxcl.training.protocol import Interrupted


def main(argv: Sequence[str]) -> int:
    shared = _CONFIG.value
    rows = _ROWS.value or list(shared.rows)
    workdir = Path(_WORKDIR.value or Path("results") / shared.name)
    runs = [row_config(row) for row in rows]
    for config in runs:  # every mistake is found before anything runs
        validate(configs.problem(config))
    results = []
    for config in runs:
        try:
            results.append(execute(config, workdir / config.row))
        except Interrupted:
            return stopped(workdir)
    if launch.is_main_process():
        report.build(results, workdir)
        report.console_table(results)
        print(f"table and figures: {workdir}")
    return 0


def row_config(row: str) -> ConfigDict:
    """The config of one row: the file's, then what the command line sets."""
    flag = flags.FLAGS["config"]
    file, _, argument = config_flags.get_config_filename(flag).partition(":")
    given = [p for p in argument.split(",") if p and p not in configs.ROWS]
    config = launch.load(Path(file)).get_config(",".join([row, *given]))
    for key, value in config_flags.get_override_values(flag).items():
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError as error:
            # A setting of one method's is none of another's.
            if not key.startswith("method."):
                raise ValueError(f"--config.{key}: no such field") from error
            print(f"{row} has no setting {key}: left as it is", file=sys.stderr)
    return config


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/NAME.")
    _ROWS = flags.DEFINE_list("strategies", None, "Rows; by default the config's own.")
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "FILE or FILE:variant; fields are --config.field=value."
    )
    flags.mark_flag_as_required("config")
    launch.run(main)
