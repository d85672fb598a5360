r"""The plane through three networks, and methods' paths in it: is there a sweet spot?

    python -m experiments.plane --config=split_cifar100:chart \
        [--strategies=bp,ewc,gpm,joint] [--workdir=DIR] [--config.field=value]
    python -m experiments.plane --runs=DIR,DIR,...

Measures accuracy on the test images of tasks 1 and 2 over a plane of weights. Its three
corners are the first row's weights after task 1 and after task 2, and the weights after
joint training on both, which continues from task 1 as every row does. Each row's path
through task 2 is drawn in the plane, epoch by epoch. Each point of a path comes with
the share of its squared distance from the first corner that lies outside the plane. The
best point is the grid point with the highest mean accuracy of both tasks on these same
images; the table says how far each row falls short of it.

With --config each row is trained on the first two tasks (or --config.data.tasks), in a
folder of its own under the workdir (by default results/plane/NAME); finished runs are
not run again. With --runs the picture is of existing runs of one network, one of them
joint; they were trained with --config.keep_weights=epochs, or with tasks for paths
without the epochs in between. The picture is of one seed, the first or --seed.

The workdir (with --runs by default results/plane) gets `plane.png`, `plane.svg`,
`plane.json`, and `plane.npz`. The last file holds the points measured so far; the same
command continues from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxcl import strategies
from jaxcl.features import Plane, place_in, plane_through, point_of
from jaxcl.training.protocol import Interrupted

from . import launch
from .launch_rows import define_rows, row_configs
from .reporting import picture
from .reporting.plane_figure import Surface, Walk, best, draw
from .reporting.style import SPARE
from .runs import landscape, machine, rows
from .runs.foreign import require_own_output
from .runs.opened import Run

ROWS = ("bp", "ewc", "gpm", "joint")


def walks_of(
    runs: Mapping[str, Run], seed: int, plane: Plane, tasks: landscape.Tasks
) -> dict[str, Walk]:
    """Row -> its path, and the accuracy of the row's own network at the end."""
    locate, found = jax.jit(place_in), {}
    for i, (row, run) in enumerate(runs.items()):
        path = landscape.moments(run, seed)
        places = [locate(plane, net) for net in path]
        found[row] = Walk(
            strategies.label(row),
            strategies.method(row).colour or SPARE[i % len(SPARE)],
            np.array([p.coordinates for p in places], float),
            np.array([p.outside for p in places], float),
            tasks.accuracy(path[-1]),
        )
    return found


def facts(
    surface: Surface, walks: Mapping[str, Walk], plane: Plane, tasks: landscape.Tasks
):
    """The picture in numbers: accuracies as shares, distances between weights."""
    spot, there = best(surface)
    return {
        "corners": {
            name: xy.tolist()
            for name, xy in zip(
                ("task_1", "task_2", "joint"), surface.corners, strict=True
            )
        },
        "best_of_the_plane": {"at": list(map(float, spot)), "accuracy": list(there)},
        "rows": {
            row: {
                "accuracy": w.accuracy.tolist(),
                "short_of_best": float(there.mean() - w.accuracy.mean()),
                "nearest_point_accuracy": list(
                    map(float, tasks.accuracy(point_of(plane, np.float32(w.xy[-1]))))
                ),
                "outside": w.outside.tolist(),
                "path": w.xy.tolist(),
            }
            for row, w in walks.items()
        },
        "x": surface.x.tolist(),
        "y": surface.y.tolist(),
        "accuracy": surface.accuracy.tolist(),
    }


def table(shown: Mapping[str, Any]) -> str:
    """A line per row and one for the best point, in percent."""
    lines = [f"{'':<12}  task 1  task 2    mean  short of best  outside  in the plane"]
    spot = shown["best_of_the_plane"]["accuracy"]
    lines.append(
        f"{'best point':<12}" + "".join(_cell(v) for v in (*spot, np.mean(spot)))
    )
    for row, found in shown["rows"].items():
        own = found["accuracy"]
        shadow = found["nearest_point_accuracy"]
        lines.append(
            f"{strategies.label(row):<12}"
            + "".join(_cell(v) for v in (*own, np.mean(own)))
            + f"{100 * found['short_of_best']:>15.1f}"
            + f"{100 * found['outside'][-1]:>8.1f}%"
            + f"{100 * np.mean(shadow):>14.1f}"
        )
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{100 * value:>8.1f}"


def _runs() -> tuple[dict[str, Run], Path]:
    """The runs that the command line names, trained if necessary, and the workdir."""
    if (_RUNS.value is None) == (_CONFIG.value is None):
        raise machine.UsageError(
            "give --config=FILE to train what is missing, or --runs=DIR,DIR,... for "
            "runs that are there"
        )
    require_own_output(
        _workdir(), *(f"plane.{kind}" for kind in ("png", "svg", "json", "npz"))
    )
    if _RUNS.value is not None:
        return rows.given(_RUNS.value), _workdir()
    configs = row_configs(_ROWS.value or list(ROWS))
    corners_of({config.row: config.joint for config in configs})
    landscape.require_two_tasks(configs, _SEED.value)
    for config in configs:
        config.keep_weights = "epochs"
        config.joint_once = False  # joint training too continues from task 1
        if config.data.tasks is None:
            config.data.tasks = (0, 2)
    workdir = _workdir()
    return rows.trained(configs, workdir, strict=launch.strict()), workdir


def _workdir() -> Path:
    name = () if _RUNS.value is not None else (_CONFIG.value.name,)
    return launch.folder(_WORKDIR.value, "plane", *name)


def main(argv: Sequence[str]) -> int:
    try:
        runs, workdir = _runs()
    except Interrupted:
        return launch.stopped(_workdir())
    try:
        show(runs, machine.writable(workdir), _SEED.value, _POINTS.value)
    except FileNotFoundError as error:  # weights that a run did not keep
        raise machine.UsageError(str(error)) from error
    return 0


def corners_of(joint: Mapping[str, bool]) -> tuple[str, str]:
    """The row whose two tasks give corners, and the joint row; `joint` says which is.

    Raises:
      UsageError: there is no such pair.
    """
    both = [[row for row in joint if joint[row] == kind] for kind in (False, True)]
    if not both[0] or len(both[1]) != 1:
        raise machine.UsageError(
            "the plane goes through a row and a joint one; got "
            f"{', '.join(joint)}: name one of each"
        )
    return both[0][0], both[1][0]


def show(
    runs: Mapping[str, Run], workdir: Path, seed: int | None, points: int
) -> dict[str, Any]:
    """Measures the plane of runs, writes the picture and prints its table.

    Args:
      runs: row -> its run, one of them joint.
      workdir: exists.
      seed: which seed; None: the first that has failed in no run.
      points: how many, along the grid's longer side.

    Returns:
      The numbers of the picture.

    Raises:
      UsageError: there is no plane through these runs.
      FileNotFoundError: weights were not kept.
    """
    first, joint = corners_of({row: run.config.joint for row, run in runs.items()})
    base = runs[first]
    bad = rows.failed(runs)
    seed = rows.sound_seeds(runs)[0] if seed is None else seed
    if any(seed in of for of in bad.values()):
        raise machine.UsageError(f"{rows.in_words(bad)}; name another seed with --seed")
    runs = {first: base, **runs}
    tasks = landscape.tasks_of(base, seed)
    landscape.require_alike(runs, seed, tasks)
    corners = [
        base.weights(seed, 0),
        base.weights(seed, 1),
        runs[joint].weights(seed, 1),
    ]
    plane = jax.jit(plane_through)(*(weights.params.net for weights in corners))
    if not any(np.any(leaf) for leaf in jax.tree.leaves(plane.second)):
        raise machine.UsageError(
            "the three networks lie on one line: there is no plane"
        )
    walks = walks_of(runs, seed, plane, tasks)
    at = np.array([place_in(plane, w.params.net).coordinates for w in corners], float)
    x, y = landscape.grid_of(
        np.concatenate([at, *(w.xy for w in walks.values())]), points
    )
    accuracy, seconds = landscape.measure(plane, x, y, tasks, workdir / "plane.npz")
    names = strategies.label(first), strategies.label(joint)
    surface = Surface(x, y, accuracy, at, names)
    shown = facts(surface, walks, plane, tasks)
    about = {"seed": seed, "seconds_of_the_plane": round(seconds, 1)}
    about |= rows.origin(runs, sys.argv[1:])
    if machine.is_main_process():
        name = base.config.name
        made = partial(draw, surface, list(walks.values()), name)
        picture.write(workdir, "plane", made, about | shown)
        print(f"{table(shown)}\npicture and numbers: {workdir}")
    return shown


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/plane/NAME.")
    _ROWS = define_rows(None, f"Rows; by default {','.join(ROWS)}.")
    _RUNS = launch.define_list("runs", None, "Folders of runs, in place of --config.")
    _SEED = flags.DEFINE_integer(
        "seed", None, "By default the first that has not failed."
    )
    _POINTS = flags.DEFINE_integer("points", 25, "Of the grid's longer side.", 3, 501)
    _CONFIG = launch.define_config("variant", required=False)
    launch.run(main)
