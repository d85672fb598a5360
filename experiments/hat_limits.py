r"""Measures where HAT stops working: learning rate, BatchNorm, many tasks.

    python -m experiments.hat_limits --study=lr --config=configs/permuted_mnist.py
    python -m experiments.hat_limits --study=norm --config=configs/permuted_mnist.py
    python -m experiments.hat_limits --study=capacity --config=configs/... \
        --config.data.num_tasks=30 --config.model.widths=(100,100)

lr        sweeps the learning rate of everything, of the weights alone, and of the
          embeddings alone (the other stays at .05), and of BP on the same network:
          accuracy, seeds that failed, and the share of embeddings that ended at the
          clamp, in the layer where most did. Which of the two bends as the first does
          tells what sets the limit, and BP whether it is HAT's at all.
norm      every kind of normalisation, those that HAT refuses included.
capacity  HAT beside BP**, EWC and GPM on the same model and tasks: accuracy over the
          tasks so far, and how much of each layer is left.

Each point is a run in a folder of its own under the workdir (by default
results/hat_limits/STUDY); what is finished there is not run again. The study's folder
gets `limits.csv` and `limits.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import optax
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxcl import metrics
from jaxcl.nn.layers import NORMS
from jaxcl.strategies import METHODS
from jaxcl.training.protocol import Interrupted
from jaxcl.types import Params

from . import launch
from .reporting.csv_files import write_csv
from .reporting.style import DPI, STYLE
from .runs import machine
from .runs.execute import carry_out, prepare
from .runs.results import OK, Result

REFERENCE_LR = 0.05
SWEPT = {
    "all": "HAT, every rate",
    "weights": "HAT, the weights' rate",
    "embeddings": "HAT, the embeddings' rate",
    "bp": "BP",
}
ROWS = ("bp_star_star", "ewc", "gpm", "hat")


class Point(NamedTuple):
    """One run of a study."""

    curve: str
    x: Any
    config: ConfigDict
    folder: str


def _apart(weights: float, embeddings: float) -> optax.GradientTransformation:
    """SGD with a rate for the network and one for HAT's embeddings."""
    return optax.multi_transform(
        {"net": optax.sgd(weights), "aux": optax.sgd(embeddings)},
        Params("net", "aux"),
    )


def sgd_weights(lr: float) -> optax.GradientTransformation:
    """An optimizer for a config: the rate is the weights', embeddings have 0.05."""
    return _apart(lr, REFERENCE_LR)


def sgd_embeddings(lr: float) -> optax.GradientTransformation:
    """An optimizer for a config: the rate is the embeddings', weights have 0.05."""
    return _apart(REFERENCE_LR, lr)


def lr_points(lrs: Sequence[float]) -> list[Point]:
    points = []
    for swept in SWEPT:
        for lr in lrs:
            config = launch.row_configs(["hat"])[0]
            config.optimizer.lr = lr
            run = swept
            if swept == "bp":
                config.row, config.strategy = "bp", "finetune"
                config.method = ConfigDict()
            elif lr == REFERENCE_LR:
                run = "all"  # the same run, whichever rate is swept
            elif swept != "all":
                config.optimizer.name = f"{__package__}.hat_limits:sgd_{swept}"
            points.append(Point(swept, lr, config, f"{run}_{lr:g}"))
    return points


def norm_points() -> list[Point]:
    points = []
    for norm in NORMS:
        config = launch.row_configs(["hat"])[0]
        config.model.norm = norm
        config.method.refuse_shared_norm = False
        points.append(Point("hat", norm, config, norm))
    return points


def capacity_points() -> list[Point]:
    points = []
    for row, config in zip(ROWS, launch.row_configs(ROWS), strict=True):
        threshold = config.method.get("threshold")
        if config.data.scenario != "task" and isinstance(threshold, tuple):
            # A head per task is not projected; the threshold of the shared one goes.
            config.method.threshold = threshold[:-1]
        config.data.scenario = "task"
        points.append(Point(row, config.data.num_tasks, config, row))
    return points


def scores(result: Result) -> dict[str, np.ndarray]:
    """ACC and BWT of each seed, NaN where it failed, in per cent."""
    with np.errstate(invalid="ignore"):
        return {
            "acc": 100 * metrics.average_accuracy(result.matrix),
            "bwt": 100 * metrics.backward_transfer(result.matrix),
        }


def table(points: Sequence[Point], results: Sequence[Result]) -> list[dict[str, Any]]:
    """A line per run: means over the seeds that did not fail."""
    lines = []
    for point, result in zip(points, results, strict=True):
        healthy = np.array([s == OK for s in result.status])
        report = result.report

        def mean(values, healthy=healthy):
            return float(values[healthy].mean()) if healthy.any() else float("nan")

        line = {"curve": point.curve, "x": point.x, "seeds": len(healthy)}
        line["failed"] = int((~healthy).sum())
        line |= {name: mean(v) for name, v in scores(result).items()}
        at_clamp = [mean(v) for v in report.get("at_clamp", {}).values()]
        line["at clamp"] = max(at_clamp, default=None)
        taken = report.get("taken", {}).values()
        line["fullest layer"] = max(
            (mean(v[:, result.tasks_done - 1]) for v in taken), default=None
        )
        lines.append(line)
    return lines


def lr_figure(lines: Sequence[dict[str, Any]], results: Sequence[Result]) -> Figure:
    del results
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    styles = ("o-", "s--", "^:", "x-")
    for (swept, label), style in zip(SWEPT.items(), styles, strict=True):
        own = [line for line in lines if line["curve"] == swept]
        lrs = [line["x"] for line in own]
        values = [
            [line["acc"] for line in own],
            [100 * line["failed"] / line["seeds"] for line in own],
        ]
        if swept != "bp":
            values.append([100 * line["at clamp"] for line in own])
        for ax, y in zip(panels, values, strict=False):
            ax.plot(lrs, y, style, ms=4, label=label)
    titles = ("ACC %", "seeds failed %", "embeddings at the clamp %")
    lrs = sorted({line["x"] for line in lines})
    for ax, title in zip(panels, titles, strict=True):
        ax.set_xscale("log")
        ax.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        ax.minorticks_off()
        ax.set_xlabel("learning rate")
        ax.set_title(title)
        ax.axvline(REFERENCE_LR, color="#8A8A8A", lw=0.8)
    panels[0].legend(fontsize=7)
    panels[1].set_ylim(-5, 105)
    return figure


def norm_figure(lines: Sequence[dict[str, Any]], results: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, name in zip(panels, ("acc", "bwt"), strict=True):
        for y, result in enumerate(results):
            seeds = scores(result)[name]
            ax.barh(y, lines[y][name], color=METHODS["hat"].colour, alpha=0.6)
            ax.scatter(seeds, np.full(len(seeds), y), 9, "w", edgecolors="k", lw=0.6)
        ax.set_yticks(range(len(lines)), [line["x"] for line in lines])
        ax.set_xlabel(f"{name.upper()} %, a dot a seed")
    return figure


def capacity_figure(
    lines: Sequence[dict[str, Any]], results: Sequence[Result]
) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    learned, seen, free = figure.subplots(1, 3)
    for line, result in zip(lines, results, strict=True):
        row, done = line["curve"], result.tasks_done
        task = np.arange(1, done + 1)
        healthy = [s == OK for s in result.status]
        matrix = 100 * result.matrix[healthy]
        new = np.diagonal(matrix, axis1=1, axis2=2)[:, :done].mean(0)
        far = np.stack([matrix[:, i, : i + 1].mean(1) for i in range(done)], 1).mean(0)
        learned.plot(task, new, color=METHODS[row].colour, label=row)
        seen.plot(task, far, color=METHODS[row].colour)
        for name, taken in result.report.get("taken", {}).items():
            left = 100 * (1 - taken[healthy, :done].mean(0))
            free.plot(task, left, color=METHODS[row].colour, lw=0.8)
            free.text(task[-1], left[-1], f" {name}", size=6, va="center")
    learned.set_title("the task just learned, accuracy %")
    seen.set_title("mean of the tasks so far, accuracy %")
    free.set_title("share of each layer free %")
    learned.legend(fontsize=7)
    for ax in (learned, seen, free):
        ax.set_xlabel("tasks")
    return figure


def main(argv: Sequence[str]) -> int:
    study = _STUDY.value
    lrs = [float(lr) for lr in _LRS.value]
    make, draw = {
        "lr": (partial(lr_points, lrs), lr_figure),
        "norm": (norm_points, norm_figure),
        "capacity": (capacity_points, capacity_figure),
    }[study]
    workdir = launch.folder(_WORKDIR.value, "hat_limits", study)
    points = make()
    # Every mistake is found before anything runs.
    jobs = [prepare(p.config, workdir / p.folder) for p in points]
    try:
        results = [result for job in jobs for result in carry_out(job)]
    except Interrupted:
        return launch.stopped(workdir)
    if machine.is_main_process():
        lines = table(points, results)
        text = write_csv(list(lines[0]), [list(line.values()) for line in lines])
        (workdir / "limits.csv").write_text(text, encoding="utf-8")
        with matplotlib.rc_context(STYLE):
            draw(lines, results).savefig(workdir / "limits.png", dpi=DPI)
        for line in lines:
            print(
                f"{line['curve']:>12} {line['x']!s:>15}  ACC {line['acc']:6.2f}  BWT "
                f"{line['bwt']:6.2f}  failed {line['failed']}/{line['seeds']}"
            )
        print(f"table and figure: {workdir}")
    return 0


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/hat_limits/….")
    _STUDY = flags.DEFINE_enum(
        "study", None, ["lr", "norm", "capacity"], "Which limit."
    )
    _LRS = flags.DEFINE_list(
        "lrs", ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"], "To sweep."
    )
    _CONFIG = launch.define_config()
    flags.mark_flag_as_required("study")
    launch.run(main)
