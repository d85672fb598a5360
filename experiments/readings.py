r"""What each reading of the orthogonal loss does to features: is rank information?

    python -m experiments.readings [--workdir=DIR] [--seeds=5] [--images=20000]

A reading is one way to read the published loss: a normalisation, applied before or
after the nonlinearity. Each reading trains the extractor of 784-400-400 for two epochs
without labels, Adam 1e-3, batch 64, once on the first task of split MNIST (digits 0 and
1) and once on images of all ten digits. Measured before and after training, on what the
classifier reads:

* the effective rank on 1,000 test images,
* the accuracy of a linear probe on all ten digits (fitted on 5,000 training images, its
  strength chosen on 1,000 more, scored on all test images),
* the share of test images for which the last layer gives only zeros.

Each point is a run in a folder of its own under the workdir (by default
results/readings); finished runs are not run again. The workdir gets `readings.csv` (a
line per seed), `readings.png`, and `readings.json`: the machine, and the versions and
commits of the runs and of the code that measured them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxcl import files
from jaxcl.benchmark import load
from jaxcl.features import accuracy, effective_rank, multinomial_probe
from jaxcl.training.protocol import Interrupted

from . import launch
from .reporting.style import DPI, STYLE
from .runs import arguments, machine
from .runs.execute import execute, finished
from .runs.foreign import require_own_output
from .runs.opened import Run, load_run
from .runs.results import OK

FORMS = (
    ("spectral", "examples"),
    ("frobenius", "examples"),
    ("rows", "examples"),
    ("rows", "features"),
)
READINGS = [(norm, of, on) for norm, of in FORMS for on in ("post", "pre")]
IMAGES = ("digits 0 and 1", "all digits")
RANKED, FITTED, HELD = 1000, 5000, 1000
VALID_FRACTION = 0.1
LEAST = math.ceil((FITTED + HELD) / (1 - VALID_FRACTION))
"""Training images that leave enough for the probe without those of validation."""
BATCH = 1000  # images per forward pass


class Measured(NamedTuple):
    """Measurements of one network's last hidden layer."""

    rank: float
    probe: float  # accuracy on all ten digits
    dead: float  # share of test images with only zeros


def config_of(images: str, reading: tuple[str, str, str], seeds, number) -> ConfigDict:
    """One reading's run: trains only the extractor, on one task's images."""
    config = load(arguments.CONFIGS / "split_mnist.py").get_config("ol,task")
    config.name = f"readings_{'two' if images == IMAGES[0] else 'ten'}"
    config.seeds = seeds
    norm, of, on = reading
    config.method.update(norm=norm, of=of, on=on, extractor=1.0)
    config.train.update(max_steps=None, epochs=2, batch_size=64)
    config.keep_weights = "tasks"
    if images == IMAGES[0]:
        config.data.tasks = (0, 1)
    else:
        config.data.update(stream="permuted", num_tasks=1, first_permuted=False)
        config.data.update(train_per_task=number, valid_fraction=VALID_FRACTION)
    return config


def measure(run: Run, seed: int, task: int, ten: Run) -> Measured:
    """Measures a seed's network after a task (−1: untrained) on all digits' images."""
    weights = run.weights(seed, task)
    if run.result.status[run.seeds.index(seed)] != OK:
        return Measured(math.nan, math.nan, math.nan)

    def features(x):
        parts = [x[i : i + BATCH] for i in range(0, len(x), BATCH)]
        taps = [run.apply(weights, part, 0).taps["head"] for part in parts]
        return jnp.concatenate(taps)

    x, y = ten.data(seed, 0, "train")
    test_x, test_y = ten.data(seed, 0, "test")
    both = features(x[: FITTED + HELD])
    test = features(test_x)
    probe = multinomial_probe(
        both[:FITTED],
        y[:FITTED],
        both[FITTED:],
        y[FITTED : FITTED + HELD],
        num_classes=10,
    )
    return Measured(
        float(effective_rank(test[:RANKED])),
        float(accuracy(probe, test, test_y)),
        float(np.mean(~np.asarray(test).any(1))),
    )


def lines_of(images: str, name: str, found: np.ndarray) -> list[dict[str, Any]]:
    """The measurements, [S, 3], as one line per seed."""
    return [
        {"images": images, "reading": name, "seed": seed}
        | dict(zip(Measured._fields, map(float, values), strict=True))
        for seed, values in enumerate(found)
    ]


def draw(lines: Sequence[dict[str, Any]]) -> Figure:
    """Probe accuracy against effective rank, one panel per set of images."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    names = list(dict.fromkeys(line["reading"] for line in lines))
    colours = matplotlib.colormaps["tab10"].colors  # pyright: ignore
    for ax, images in zip(figure.subplots(1, 2, sharey=True), IMAGES, strict=True):
        for i, name in enumerate(names):
            own = [x for x in lines if (x["images"], x["reading"]) == (images, name)]
            points = np.array([(x["rank"], 100 * x["probe"]) for x in own])
            mark = "k*" if name == "untrained" else "v" if "pre" in name else "o"
            colour = {} if name == "untrained" else {"color": colours[(i - 1) // 2]}
            ax.plot(*points.T, mark, ms=4, ls="", label=name, **colour)
        ax.set_title(f"trained on {images}")
        ax.set_xlabel("effective rank of the last hidden layer")
    figure.axes[0].set_ylabel("linear probe, ten digits, %")
    figure.legend(
        *figure.axes[1].get_legend_handles_labels(),
        fontsize=6.5,
        loc="outside right center",
    )
    return figure


def write(workdir: Path, lines: Sequence[dict[str, Any]], runs: Sequence[Run]) -> None:
    """The table, its figure, and where both come from."""
    text, image = io.StringIO(newline=""), io.BytesIO()
    writer = csv.DictWriter(text, lines[0].keys())
    writer.writeheader()
    writer.writerows(lines)
    files.write_whole(workdir / "readings.csv", text.getvalue())
    with matplotlib.rc_context(STYLE):
        draw(lines).savefig(image, dpi=DPI)
    files.write_whole(workdir / "readings.png", image.getvalue())
    about = {
        "seeds": list(runs[0].seeds),
        "images": {"ranked": RANKED, "probe_fitted": FITTED, "probe_chosen": HELD},
        "device": sorted({run.result.device for run in runs}),
        "commits_of_runs": sorted(
            {run.result.versions.get("commit", "unknown") for run in runs}
        ),
        "seconds_of_runs": round(sum(run.result.wall_s for run in runs), 1),
        "measured_with": dict(machine.versions()),
    }
    files.write_whole(workdir / "readings.json", json.dumps(about, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    workdir = launch.folder(_WORKDIR.value, "readings")
    seeds, lines = tuple(range(_SEEDS.value)), []
    require_own_output(workdir, "readings.csv", "readings.png", "readings.json")
    runs: dict[tuple, Run] = {}
    try:
        for images in IMAGES:
            for reading in READINGS:
                config = config_of(images, reading, seeds, _IMAGES.value)
                folder = workdir / config.name / "_".join(reading)
                if finished(config, folder) is None:
                    execute(config, folder, strict=launch.strict())
                runs[images, reading] = load_run(folder)
    except Interrupted:
        return launch.stopped(workdir)
    ten = runs[IMAGES[1], READINGS[0]]
    for images in IMAGES:
        first = runs[images, READINGS[0]]
        cases = [("untrained", first, -1)]
        cases += [(_name(reading), runs[images, reading], 0) for reading in READINGS]
        for name, run, task in cases:
            found = np.array([measure(run, seed, task, ten) for seed in seeds])
            lines += lines_of(images, name, found)
            mean, std = found.mean(0), found.std(0, ddof=1)
            print(
                f"{images:>15}  {name:<24} rank {mean[0]:6.1f} ± {std[0]:4.1f}  probe "
                f"{100 * mean[1]:5.2f} ± {100 * std[1]:4.2f} %  dead "
                f"{100 * mean[2]:4.1f} %",
                flush=True,
            )
    if machine.is_main_process():
        write(workdir, lines, list(runs.values()))
        print(f"table and figure: {workdir}")
    return 0


def _name(reading: tuple[str, str, str]) -> str:
    norm, of, on = reading
    return f"{norm} {on}" if norm != "rows" else f"rows of {of} {on}"


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/readings.")
    _SEEDS = flags.DEFINE_integer("seeds", 5, "How many.", 2, 1000)
    _IMAGES = flags.DEFINE_integer(
        "images", 20000, "Training images of all digits.", lower_bound=LEAST
    )
    launch.run(main)
