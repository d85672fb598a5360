r"""What a training step costs: this project, one and five seeds, and PyTorch.

python -m experiments.bench [--cases=mlp10,alexnet] [--rounds=5] [--out=FILE.json]

Every case but ``conv``, a convolution alone, runs the same functions as
`experiments.run`, on random images of the data set's shape, in its third task. The
cases are timed in alternating rounds. Printed are medians in µs per step and seed, with
the ratios to BP with five seeds and to PyTorch in the same rounds, and the ratio to BP
of the floating-point operations that XLA counts in a method's step. The work of a
method at a task's end is timed per minibatch of the examples that it reads there; this
compares with one step of BP, which computes one gradient over as many examples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from jaxcl import files
from jaxcl.strategies import label

from . import launch
from .runs import arithmetic, machine
from .runs.cases import CASES
from .runs.in_pytorch import torch_step
from .runs.timers import Timer, convolution_step, jax_end, jax_step

RATIOS = {
    "to_bp": "× BP",
    "arithmetic_to_bp": "operations × BP",
    "to_torch": "× PyTorch",
}


def contestants(name: str, seed_mode: str) -> dict[str, Timer]:
    """The timers that a case compares, by name."""
    if name == "conv":
        return {
            "patches × kernel, 5 seeds": convolution_step(True),
            "lax convolution, 5 seeds": convolution_step(False),
        }
    case = CASES[name]
    found = {
        f"{label(row)}, {n} seed{'s' * (n > 1)}": jax_step(case, row, n, seed_mode)
        for row in case.methods
        for n in ((1, 5) if row == "bp" else (5,))
    }
    found |= {
        f"{label(row)} with clip, 5 seeds": jax_step(case, row, 5, seed_mode, clip=10.0)
        for row in case.clipped
    }
    found |= {
        f"{what}, a task's end, 5 seeds": jax_end(case, what, 5, seed_mode)
        for what in case.ends
    }
    torch_timer = torch_step(case)
    return found | ({"PyTorch, 1 seed": torch_timer} if torch_timer else {})


def arithmetic_of(name: str) -> dict[str, float]:
    """Contestant -> the operations of its step over those of BP's."""
    if name == "conv":
        return {}
    case = CASES[name]
    bp = arithmetic.flops(case, "bp", 1)
    return {
        f"{label(row)}, 5 seeds": arithmetic.flops(case, row, 1) / bp
        for row in case.methods
    }


def main(argv: Sequence[str]) -> int:
    unknown = [c for c in _CASES.value if c not in (*CASES, "conv")]
    if unknown:
        raise machine.UsageError(
            f"unknown case {unknown[0]!r}; known: {', '.join((*CASES, 'conv'))}"
        )
    if _ROUNDS.value < 1:
        raise machine.UsageError(f"--rounds must be at least 1, got {_ROUNDS.value}")
    out = _OUT.value and Path(_OUT.value)
    if out and (out.is_dir() or not out.parent.is_dir()):
        raise machine.UsageError(f"--out must be a file in a folder, got {out}")
    console = Console(width=100)
    rows = []
    for name in _CASES.value:
        timers, operations = contestants(name, _SEED_MODE.value), arithmetic_of(name)
        times: dict[str, list[float]] = {what: [] for what in timers}
        for _ in range(_ROUNDS.value):
            for what, timer in timers.items():
                times[what].append(timer())
        median = {what: float(np.median(t)) for what, t in times.items()}
        bp = median.get("BP, 5 seeds")
        torch_time = median.get("PyTorch, 1 seed")
        batch = 64 if name == "conv" else CASES[name].batch
        for what, t in median.items():
            rows.append(
                {
                    "case": name,
                    "what": what,
                    "us_per_step_and_seed": t * 1e6,
                    "images_per_s": batch / t,
                    "to_bp": t / bp if bp else None,
                    "arithmetic_to_bp": operations.get(what),
                    "to_torch": t / torch_time if torch_time else None,
                }
            )
    table = Table(title=f"medians of {_ROUNDS.value} rounds, {machine.device()}")
    headings = ("case", "what", "µs/step/seed", "images/s", *RATIOS.values())
    for heading in headings:
        table.add_column(
            heading, justify="right" if headings.index(heading) > 1 else "left"
        )
    for r in rows:
        ratios = [f"{r[k]:.2f}" if r[k] is not None else "–" for k in RATIOS]
        us, images = f"{r['us_per_step_and_seed']:,.0f}", f"{r['images_per_s']:,.0f}"
        table.add_row(r["case"], r["what"], us, images, *ratios)
    console.print(table)
    if out:
        record = {
            "device": machine.device(),
            "versions": machine.versions(),
            "rows": rows,
        }
        files.write_whole(out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    _CASES = launch.define_list("cases", ["mlp10", "mlp64", "alexnet"], "What to time.")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Alternating rounds.")
    _SEED_MODE = flags.DEFINE_string("seed_mode", "auto", "Seeds: auto, map or vmap.")
    _OUT = flags.DEFINE_string("out", None, "Also write the figures to this JSON file.")
    launch.run(main)
