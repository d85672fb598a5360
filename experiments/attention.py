r"""Where two networks look in the same images after each task, and how far they agree.

    python -m experiments.attention --config=split_cifar100:chart \
        [--strategies=bp,hat] [--images=0,1,2,3] [--workdir=DIR] [--config.field=value]
    python -m experiments.attention --runs=DIR,DIR

A map of an image is made by covering one square at a time; the square's side is a
quarter of the image's. The map shows how much covering each square lowers the logarithm
of the probability that the network gives the true class (among the outputs that are in
play). The images are test images of task 1; --images names them by their positions.

The agreement of two maps is the rank correlation of their values, averaged over
--measured images. It is measured between a method and itself after task 1, between the
two methods after the same task, and between the seeds of one method. The baseline for
an agreement is that of maps of two different images: they share only what all maps have
in common.

With --config each row is trained in a folder of its own under the workdir (by default
results/attention/NAME); finished runs are not run again. With --runs the maps are of
two existing runs, which were trained with --config.keep_weights=tasks.

The workdir (with --runs by default results/attention) gets `attention.png`,
`attention.svg`, `attention.json`, and `attention.npz`. The last file holds the maps
measured so far; the same command continues from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from jaxcl import strategies
from jaxcl.training.problem import Problem
from jaxcl.training.protocol import Interrupted

from . import launch
from .launch_rows import define_rows, row_configs
from .reporting import picture
from .reporting.attention_figure import Curve, Seen, draw
from .reporting.style import SPARE
from .runs import machine, rows
from .runs.foreign import require_own_output
from .runs.maps import (
    measure,
    numbers,
    require_images,
    require_pair,
    require_two,
    window_of,
)
from .runs.opened import Run

ROWS = ("bp", "hat")
PAIR = "both methods, one seed"
OTHER = "two different images"


def curves_of(found: Mapping[str, Any], colours: Mapping[str, str]):
    """The agreements as curves of two panels."""

    def curve(label: str, colour: str, values, dashed: bool = False) -> Curve:
        return Curve(label, colour, dashed, np.array(values, float))

    own = [
        curve(strategies.label(row), colours[row], values)
        for row, values in found["with_task_1"].items()
    ]
    chance = np.mean(np.array(list(found["other_image"].values()), float), 0)
    other = curve(OTHER, "#777777", chance, dashed=True)
    both = [curve(PAIR, "black", found["between_methods"])]
    both += [
        curve(f"{strategies.label(row)}, two seeds", colours[row], values)
        for row, values in found["between_seeds"].items()
        if values
    ]
    return [[*own, other], [*both, other]]


def table(found: Mapping[str, Any]) -> str:
    """The agreements as a text table."""
    of = strategies.label
    lines = {f"{of(r)} with itself after task 1": v for r, v in _rows(found, 0)}
    lines[PAIR] = found["between_methods"]
    lines |= {f"{of(r)}, two seeds": v for r, v in _rows(found, 1) if v}
    lines |= {f"{of(r)}, {OTHER}": v for r, v in _rows(found, 2)}
    tasks = len(found["between_methods"])
    text = [f"{'rank correlation after task':<32}" + _cells(range(1, tasks + 1), "d")]
    return "\n".join(text + [f"{k:<32}{_cells(v, '.2f')}" for k, v in lines.items()])


def _rows(found: Mapping[str, Any], which: int):
    return found[("with_task_1", "between_seeds", "other_image")[which]].items()


def _cells(values, form: str) -> str:
    return "".join(f"{'-' if v is None else format(v, form):>6}" for v in values)


def _runs() -> tuple[dict[str, Run], Path]:
    """The runs that the command line names, trained if necessary, and the workdir."""
    if (_RUNS.value is None) == (_CONFIG.value is None):
        raise machine.UsageError(
            "give --config=FILE to train what is missing, or --runs=DIR,DIR for runs "
            "that are there"
        )
    require_own_output(
        _workdir(), *(f"attention.{kind}" for kind in ("png", "svg", "json", "npz"))
    )
    if _RUNS.value is not None:
        return rows.given(_RUNS.value), _workdir()
    configs = row_configs(_ROWS.value or list(ROWS))
    require_two([config.row for config in configs])
    for config in configs:
        if config.keep_weights != "epochs":
            config.keep_weights = "tasks"
    workdir = _workdir()

    def suits(problem: Problem) -> None:
        require_images(problem, _CONFIG.value.name)
        _places(_IMAGES.value, int(problem.stream.per_seed.test.offset[:, 1].min()))

    found = rows.trained(configs, workdir, strict=launch.strict(), suits=suits)
    return found, workdir


def _workdir() -> Path:
    name = () if _RUNS.value is not None else (_CONFIG.value.name,)
    return launch.folder(_WORKDIR.value, "attention", *name)


def main(argv: Sequence[str]) -> int:
    try:
        runs, workdir = _runs()
    except Interrupted:
        return launch.stopped(_workdir())
    try:
        show(runs, machine.writable(workdir), _IMAGES.value, _MEASURED.value)
    except FileNotFoundError as error:  # weights that a run did not keep
        raise machine.UsageError(str(error)) from error
    return 0


def show(
    runs: Mapping[str, Run], workdir: Path, images: Sequence[str] | None, measured: int
) -> dict[str, Any]:
    """Measures the maps of two runs, writes the picture and prints its table.

    Args:
      runs: row -> its run.
      workdir: exists.
      images: the images to show, by their positions among the test images of task 1;
        None: four images.
      measured: how many images agreements are averaged over.

    Returns:
      The numbers of the picture.

    Raises:
      UsageError: the maps of these runs cannot be compared.
      FileNotFoundError: weights were not kept.
    """
    alike = require_pair(runs)
    first = next(iter(runs.values()))
    seeds, bad = rows.sound_seeds(runs), rows.failed(runs)
    x, y = first.data(seeds[0], 0, "test")
    count = min(len(first.data(seed, 0, "test")[0]) for seed in seeds)
    given = _places(images, count)
    spread = np.linspace(0, count - 1, min(measured, count)).astype(int)
    maps, seconds = measure(runs, seeds, [*given, *spread], workdir / "attention.npz")
    shown = len(given)
    found = numbers({row: m.maps[:, :, shown:] for row, m in maps.items()}, alike)
    colours = {
        row: strategies.method(row).colour or SPARE[i] for i, row in enumerate(runs)
    }
    at = [first.seeds.index(seed) for seed in seeds]
    accuracy = {row: run.result.matrix[at][:, :, 0] for row, run in runs.items()}
    methods = [
        Seen(
            *(strategies.label(row), m.maps[0, :, :shown], m.chance[0, :, :shown]),
            accuracy[row][0],
        )
        for row, m in maps.items()
    ]
    stream, name = first.problem.stream, first.config.name
    grey = (x[given] * np.array(stream.std) + np.array(stream.mean)).mean(-1)
    about = {
        "images": given,
        "classes": y[given].tolist(),
        "images_measured": len(spread),
        "seed_shown": seeds[0],
        "seeds_measured": seeds,
        "failed": bad,
        "accuracy": {
            row: m.astype(float).round(4).tolist() for row, m in accuracy.items()
        },
        "agreement": found,
        "seconds_of_the_maps": round(seconds, 1),
        **rows.origin(runs, sys.argv[1:]),
    }
    if machine.is_main_process():
        made = partial(
            draw,
            *(grey.clip(0, 1), window_of(x.shape), methods, curves_of(found, colours)),
            ("with the method's own map after task 1", "of methods and of seeds"),
            name,
        )
        picture.write(workdir, "attention", made, about)
        print(f"{table(found)}\npicture and numbers: {workdir}")
        if any(bad.values()):
            print(f"without the seeds that failed in a run: {rows.in_words(bad)}")
    return about


def _places(given: Sequence[str] | None, count: int) -> list[int]:
    """Positions of the images to show; by default four, spread over the task."""
    if given is None:
        return list(map(int, (np.arange(4) + 0.5) / 4 * count))
    try:
        places = [int(i) for i in given]
    except ValueError:
        places = []
    if not places or not all(0 <= i < count for i in places):
        raise machine.UsageError(
            f"--images must be places in 0..{count - 1}, got {','.join(given)}"
        )
    return places


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "By default results/attention/NAME."
    )
    _ROWS = define_rows(None, f"Two; by default {','.join(ROWS)}.")
    _RUNS = launch.define_list("runs", None, "Folders of two runs, not --config.")
    _IMAGES = launch.define_list(
        "images", None, "Which test images of task 1 are shown; by default four."
    )
    _MEASURED = flags.DEFINE_integer(
        "measured", 100, "Over how many images agreements are taken.", lower_bound=2
    )
    _CONFIG = launch.define_config("variant", required=False)
    launch.run(main)
