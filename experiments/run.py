r"""Runs one method on one benchmark, all seeds at once.

python -m experiments.run --config=configs/permuted_mnist.py:ewc --workdir=DIR

A method from another package is named by its import path; its settings are fields:

python -m experiments.run --config=digits --config.strategy=my_package.methods:l2 \
    --config.method.strength=3.0 --workdir=DIR

After an interruption the same command continues the run. If other code or other
versions made the saved state, it warns and continues; with --strict it refuses. The
workdir gets `config.json`, `metrics.jsonl`, `matrix.npy` (the accuracies so far,
[after which task, seed, on which task]), `result.json`, checkpoints, and the table and
figures of the run.
--print_config prints every field in effect and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from jaxcl.training.protocol import Interrupted

from . import inert, launch
from .config import in_effect
from .reporting.build import build, console_table
from .runs import machine
from .runs.execute import execute


def main(argv: Sequence[str]) -> int:
    if _PRINT.value:
        print(in_effect(_CONFIG.value))
        return 0
    if _WORKDIR.value is None:
        raise machine.UsageError("--workdir=DIR is missing: where results go")
    inert.refuse(inert.given_fields(), [_CONFIG.value])
    workdir = launch.folder(_WORKDIR.value)
    try:
        result = execute(_CONFIG.value, workdir, strict=launch.strict())
    except Interrupted:
        return launch.stopped(workdir)
    if machine.is_main_process():
        build([result], workdir)
        console_table([result])
        print(f"table and figures: {workdir}")
    return launch.ended([result])


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.")
    _CONFIG = launch.define_config()
    _PRINT = flags.DEFINE_bool("print_config", False, "Print the config, run nothing.")
    launch.run(main)
