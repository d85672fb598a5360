r"""What forgets, features or classifier: heads in closed form on final features.

    python -m experiments.heads --config=split_mnist:class \
        [--strategies=bp,bp_star_star,er,joint,random_frozen,linear] [--workdir=DIR] \
        [--config.field=value]

Each row is trained as in its config. After the last task these heads are measured on
the test images of all tasks:

    softmax          the classifier that was trained
    NCM, SLDA        streamed class means, without and with one shared covariance: of
                     the features as each task left them, no image seen again
    oracle NCM, SLDA, probe    fitted to the training images of all tasks, on the
                     final features; the probe is ridge regression, its strength
                     chosen on validation images

The gap between an oracle and its streamed head is due to drift of the features. The gap
between the oracle probe and the softmax is what the classifier forgot and the features
kept. An oracle is no method: it sees all data again.

Each row is a run in a folder of its own under the workdir (by default
results/heads/NAME); finished runs are not run again. The workdir gets `heads.md`,
`heads.csv` (per seed) and `heads.png`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxcl import strategies
from jaxcl.features import Probe, lda, ncm, ridge_probe
from jaxcl.heads import head_layers
from jaxcl.ops import discriminant
from jaxcl.training.problem import setup_of, validate
from jaxcl.training.protocol import Interrupted

from . import config as configs
from . import launch
from .config import folder
from .reporting.style import DPI, STYLE, plain
from .reporting.tables import escape, write_csv
from .runs import machine
from .runs.execute import execute, finished
from .runs.opened import Run, load_run
from .runs.results import OK

ROWS = ("bp", "bp_star_star", "er", "joint", "random_frozen", "linear")
NAMES = ("softmax", "NCM", "SLDA", "oracle NCM", "oracle SLDA", "oracle probe")
MARKS = ("k*", "o", "s", "o", "s", "D")  # an oracle's is hollow
SHRINKAGE = 1e-4
CHUNK = 500  # images per forward pass


class Features(NamedTuple):
    """The features of one task's images under one seed's weights."""

    x: jax.Array  # float32[N, D]
    y: np.ndarray  # int32[N]


def features(run: Run, weights, seed: int, task: int, part: str) -> Features:
    """The classifier's input for a task's images, in evaluation mode."""
    (head,) = (layer.name for layer in head_layers(setup_of(run.problem)))
    x, y = run.data(seed, task, part)
    parts = [
        run.apply(weights, x[i : i + CHUNK], task).taps[head]
        for i in range(0, len(x), CHUNK)
    ]
    return Features(jnp.concatenate(parts).reshape(len(x), -1), y)


def streamed(run: Run, seed: int) -> dict[str, discriminant.LinearHead]:
    """Heads fitted to the features as each task left them, as the strategies do."""
    outputs = run.problem.stream.num_outputs
    means, scatter = None, jnp.zeros(())
    for task in range(run.num_tasks):
        x, y = features(run, run.weights(seed, task), seed, task, "train")
        means = means or discriminant.no_means(outputs, x.shape[1])
        means, rows = _absorb(means, x, jnp.asarray(y))
        scatter = scatter + rows
    assert means is not None  # a stream has a task
    return {
        "NCM": discriminant.nearest_mean(means),
        "SLDA": discriminant.discriminant(means, scatter, SHRINKAGE),
    }


@jax.jit
def _absorb(means, x, y):
    means, rows = discriminant.absorb(means, x, y, jnp.ones(len(x)))
    return means, discriminant.whole_gram(discriminant.half_gram(rows))


def oracles(run: Run, seed: int) -> dict[str, Probe]:
    """Heads fitted to the final features of all tasks' training images."""
    final, tasks = run.weights(seed, run.num_tasks - 1), range(run.num_tasks)
    outputs = run.problem.stream.num_outputs

    def all_tasks(part: str) -> Features:
        found = [features(run, final, seed, task, part) for task in tasks]
        return Features(
            jnp.concatenate([f.x for f in found]), np.concatenate([f.y for f in found])
        )

    x, y = all_tasks("train")
    held = all_tasks("valid")
    return {
        "oracle NCM": ncm(x, y, num_classes=outputs),
        "oracle SLDA": lda(x, y, num_classes=outputs, shrinkage=SHRINKAGE),
        "oracle probe": ridge_probe(x, y, *held, num_classes=outputs),
    }


def measure(run: Run, seed: int) -> dict[str, float]:
    """Head -> one seed's mean accuracy over all tasks, after the last one.

    NaN for a seed that has failed.
    """
    if run.result.status[run.seeds.index(seed)] != OK:
        return dict.fromkeys(NAMES, math.nan)
    last, stream = run.num_tasks - 1, run.problem.stream
    heads = {**streamed(run, seed), **oracles(run, seed)}
    right: dict[str, list[float]] = {name: [] for name in NAMES}
    place = run.seeds.index(seed)
    right["softmax"] = list(run.result.matrix[place, last])
    for task in range(run.num_tasks):
        x, y = features(run, run.weights(seed, last), seed, task, "test")
        row = task if stream.mask_by == "example" else last
        mask = np.asarray(stream.logit_mask)[row]
        for name, head in heads.items():
            if isinstance(head, Probe):
                scores = x @ head.weights + head.bias
            else:
                scores = discriminant.logits(head, x)
            answer = np.where(mask, np.asarray(scores), -np.inf).argmax(1)
            right[name].append(float((answer == y).mean()))
    return {name: float(np.mean(values)) for name, values in right.items()}


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a line per row, mean ± standard deviation over seeds, in percent."""
    lines = ["| Method | " + " | ".join(NAMES) + " |"]
    lines.append("| --- |" + " ---: |" * len(NAMES))
    for row, found in rows.items():
        cells = []
        for name in NAMES:
            values = 100 * _healthy(found, name)
            std = values.std(ddof=1) if len(values) > 1 else math.nan
            mean = values.mean() if len(values) else math.nan
            cells.append(f"{mean:.2f} ± {std:.2f}")
        failed = len(found) - len(_healthy(found, "softmax"))
        note = f" ({failed} of {len(found)} seeds failed)" if failed else ""
        name = escape(strategies.label(row) + note)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _healthy(found: list[dict[str, float]], name: str) -> np.ndarray:
    """A head's accuracies, of the seeds that did not fail."""
    values = np.array([seed[name] for seed in found])
    return values[~np.isnan(values)]


def draw(rows: dict[str, list[dict[str, float]]]) -> Figure:
    """One line of marks per row: each seed, and the mean."""
    figure = Figure(figsize=(7, 0.9 + 0.45 * len(rows)), layout="constrained")
    ax = figure.subplots()
    colours = matplotlib.colormaps["tab10"].colors  # pyright: ignore
    colour = dict(zip(("NCM", "SLDA", "probe"), colours, strict=False))
    for name, mark in zip(NAMES, MARKS, strict=True):
        kind = name.removeprefix("oracle ")
        look: dict[str, Any] = {"ls": "", "ms": 6}
        if name != "softmax":
            look["color"] = colour[kind]
        if name.startswith("oracle"):
            look["mfc"] = "none"
        healthy = [_healthy(found, name) for found in rows.values()]
        means = [100 * h.mean() if len(h) else math.nan for h in healthy]
        ax.plot(means, range(len(rows)), mark, label=name, **look)
        for y, found in enumerate(rows.values()):
            each = [100 * seed[name] for seed in found]
            ax.plot(each, [y] * len(each), "|", ms=5, color=look.get("color", "k"))
    ax.set_yticks(range(len(rows)), [plain(strategies.label(row)) for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel("accuracy on all tasks after the last, %")
    figure.legend(fontsize=7, ncols=len(NAMES), loc="outside upper center")
    return figure


def _require_head(config: ConfigDict) -> None:
    """Refuses a classifier whose input is not one layer's, and no validation data."""
    validate(problem := configs.problem(config))
    if not problem.stream.capacity("valid"):
        told = "chosen on validation images: set --config.data.valid_fraction"
        raise machine.UsageError(f"the oracle probe's strength is {told}")
    found = head_layers(setup_of(problem))
    if len(found) != 1 or found[0].refusal:
        names = ", ".join(layer.name for layer in found) or "none"
        raise machine.UsageError(
            f"heads reads the input of a classifier of one layer; model.head="
            f"{config.model.head!r} has {names}"
        )


def main(argv: Sequence[str]) -> int:
    names = _ROWS.value or list(ROWS)
    workdir = launch.folder(_WORKDIR.value, "heads", _CONFIG.value.name)
    rows: dict[str, list[dict[str, float]]] = {}
    try:
        for row, config in zip(names, launch.row_configs(names), strict=True):
            config.keep_weights = "tasks"
            config.joint_once = False  # joint training too has features of each task
            _require_head(config)
            if finished(config, workdir / folder(row)) is None:
                execute(config, workdir / folder(row))
            run = load_run(workdir / folder(row))
            rows[row] = [measure(run, seed) for seed in run.seeds]
            print(table({row: rows[row]}).splitlines()[-1], flush=True)
    except Interrupted:
        return launch.stopped(workdir)
    if machine.is_main_process():
        (workdir / "heads.md").write_text(table(rows), encoding="utf-8")
        lines = [
            (row, seed, *(values[name] for name in NAMES))
            for row, found in rows.items()
            for seed, values in zip(_CONFIG.value.seeds, found, strict=True)
        ]
        text = write_csv(("row", "seed", *NAMES), lines)
        (workdir / "heads.csv").write_text(text, encoding="utf-8")
        with matplotlib.rc_context(STYLE):
            draw(rows).savefig(workdir / "heads.png", dpi=DPI)
        print(table(rows) + f"table and figure: {workdir}")
    return 0


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/heads/NAME.")
    _ROWS = flags.DEFINE_list("strategies", None, "Rows; by default the six above.")
    _CONFIG = launch.define_config("variant")
    launch.run(main)
