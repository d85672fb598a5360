r"""What a training step costs on paper: arithmetic, memory traffic, kernels.

    python -m experiments.roofline [--networks=mlp10,alexnet,resnet18]
        [--seeds=1,5,20] [--rounds=3] [--workdir=DIR]

BP's step of each network is compiled for all seeds side by side, as accelerators run
it, and XLA counts its floating-point operations, the bytes that its kernels read and
write, and the kernels. A device cannot take less time than the largest of three: the
operations at its rate, the bytes at its bandwidth, the kernels one after the other.
What binds says what would help, and whether more seeds are free: where kernels bind,
five seeds take as long as one.

The limits of this machine are measured (a product of two matrices, a sum of two long
vectors, a chain of small kernels), and so are its steps, as `experiments.bench` times
them, one seed after the other; ``--rounds=0`` leaves the steps out. Those of
accelerators are their makers' figures. The folder (by default results/roofline) gets
`roofline.json`, `roofline.png` and a page, `README.md`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from absl import flags

from jaxcl import files

from . import launch
from .reporting.roofs import draw, page, short
from .reporting.style import DPI, STYLE
from .runs import machine
from .runs.arguments import counts
from .runs.arithmetic import Work, work
from .runs.cases import CASES
from .runs.devices import ACCELERATORS, Device, bound, this_machine
from .runs.foreign import require_page
from .runs.plain_json import read_json
from .runs.timers import jax_step

NETWORKS = {
    "mlp10": "MLP 784-100-100, batch 10",
    "mlp256": "MLP 784-256-256, batch 10",
    "mlp64": "MLP 784-400-400, batch 64",
    "alexnet": "AlexNet, batch 64",
    "resnet18": "reduced ResNet-18, batch 64",
}


def main(argv: Sequence[str]) -> int:
    unknown = [name for name in _NETWORKS.value if name not in NETWORKS]
    if unknown:
        known = ", ".join(NETWORKS)
        raise machine.UsageError(f"unknown network {unknown[0]!r}; known: {known}")
    seeds = counts("seeds", _SEEDS.value)
    workdir = launch.folder(_WORKDIR.value, "roofline")
    record = workdir / "roofline.json"
    before = read_json(record) if record.exists() else {}
    require_page(workdir / "README.md", "# What a step costs on paper")
    workdir.mkdir(parents=True, exist_ok=True)
    versions = dict(machine.versions())
    if before and before.get("versions") != versions:
        raise machine.UsageError(f"{record} has another commit's or version's figures")
    here = this_machine()._asdict()
    # The limits beside the timed steps are those of the machine as it was then.
    if _ROUNDS.value or not before:
        devices = [here, *(d._asdict() for d in ACCELERATORS)]
    else:
        devices = before["devices"]
    about = {"lines": before.get("lines", []), "devices": devices, "versions": versions}
    lines = about["lines"]
    for name, n in product(dict.fromkeys(_NETWORKS.value), seeds):
        if not any((x["case"], x["seeds"]) == (name, n) for x in lines):
            of = work(CASES[name], "bp", n)
            line = {"case": name, "network": NETWORKS[name], "seeds": n}
            lines.append(line | of._asdict() | {"measured_s": None})
            print(
                f"{NETWORKS[name]}, {n} seeds: {short(of.flops / 1e9)} GFLOP, "
                f"{short(of.bytes / 1e6)} MB, {of.kernels} kernels",
                flush=True,
            )
            write(workdir, about)
    for line in lines if _ROUNDS.value else ():
        if line["measured_s"] is None:
            step = jax_step(CASES[line["case"]], "bp", line["seeds"], "auto")
            times = [step() for _ in range(_ROUNDS.value)]
            line["measured_s"] = line["seeds"] * float(np.median(times))
            write(workdir, about)
    write(workdir, about)
    print(f"page and figure: {workdir}")
    return 0


def write(workdir: Path, about: dict[str, Any]) -> None:
    """The record, the page and the figure."""
    devices = [Device(**fields) for fields in about["devices"]]
    order = list(NETWORKS)
    about["lines"].sort(key=lambda line: (order.index(line["case"]), line["seeds"]))
    for line in about["lines"]:
        of = Work(line["flops"], line["bytes"], line["kernels"])
        line["least"] = {d.name: bound(of, d)._asdict() for d in devices}
    image = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(about).savefig(image, dpi=DPI)
    files.write_whole(workdir / "roofline.json", json.dumps(about, indent=1) + "\n")
    files.write_whole(workdir / "roofline.png", image.getvalue())
    files.write_whole(workdir / "README.md", page(about))


if __name__ == "__main__":
    _NETWORKS = launch.define_list(
        "networks", ["mlp10", "alexnet", "resnet18"], f"Of {', '.join(NETWORKS)}."
    )
    _SEEDS = launch.define_list("seeds", ["1", "5", "20"], "How many side by side.")
    _ROUNDS = flags.DEFINE_integer(
        "rounds", 3, "Timings of each step; 0 leaves them out.", lower_bound=0
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/roofline.")
    launch.run(main)
