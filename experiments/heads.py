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
kept. An oracle is no method: it sees all data again. Joint training with `joint_once`
has no features of single tasks: nothing is streamed.

Each row is a run in a folder of its own under the workdir (by default
results/heads/NAME); finished runs are not run again. The workdir gets `heads.md`,
`heads.csv` (per seed) and `heads.png`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxcl import strategies
from jaxcl.features import Probe
from jaxcl.heads import head_layers
from jaxcl.ops import discriminant
from jaxcl.training.problem import setup_of, validate
from jaxcl.training.protocol import Interrupted

from . import launch
from .config import folder
from .config import problem as problem_of
from .launch_rows import define_rows, row_configs
from .reporting.style import DPI, STYLE, plain
from .reporting.tables import escape, write_csv
from .runs import machine
from .runs.execute import carry_out, finished, prepare
from .runs.foreign import require_no_run, require_own_output
from .runs.opened import Run, load_run
from .runs.readout import features, oracles, streamed
from .runs.results import OK

ROWS = ("bp", "bp_star_star", "er", "joint", "random_frozen", "linear")
NAMES = ("softmax", "NCM", "SLDA", "oracle NCM", "oracle SLDA", "oracle probe")
OUTPUT = ("heads.md", "heads.csv", "heads.png")
MARKS = ("k*", "o", "s", "o", "s", "D")  # an oracle's is hollow


def measure(run: Run, seed: int) -> dict[str, float]:
    """Head -> one seed's mean accuracy over all tasks, after the last one.

    NaN for a seed that has failed, and for a head that the run cannot have.
    """
    if run.result.status[run.seeds.index(seed)] != OK:
        return dict.fromkeys(NAMES, math.nan)
    last, stream = run.num_tasks - 1, run.problem.stream
    heads = dict(oracles(run, seed))
    if not run.problem.joint_once:
        heads |= streamed(run, seed)
    right: dict[str, list[float]] = {name: [] for name in ("softmax", *heads)}
    final, place = run.weights(seed, last), run.seeds.index(seed)
    right["softmax"] = list(run.result.matrix[place, last])
    for task in range(run.num_tasks):
        x, y = features(run, final, seed, task, "test", last)
        row = task if stream.mask_by == "example" else last
        mask = np.asarray(stream.logit_mask)[row]
        for name, head in heads.items():
            if isinstance(head, Probe):
                scores = x @ head.weights + head.bias
            else:
                scores = discriminant.logits(head, x)
            answer = np.where(mask, np.asarray(scores), -np.inf).argmax(1)
            right[name].append(float((answer == y).mean()))
    found = {name: float(np.mean(values)) for name, values in right.items()}
    return dict.fromkeys(NAMES, math.nan) | found


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a line per row, mean ± standard deviation over seeds, in percent."""
    lines = ["| Method | " + " | ".join(NAMES) + " |"]
    lines.append("| --- |" + " ---: |" * len(NAMES))
    for row, found in rows.items():
        cells = [_cell(100 * _healthy(found, name)) for name in NAMES]
        failed = len(found) - len(_healthy(found, "softmax"))
        note = f" ({failed} of {len(found)} seeds failed)" if failed else ""
        name = escape(strategies.label(row) + note)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: np.ndarray) -> str:
    std = values.std(ddof=1) if len(values) > 1 else math.nan
    return f"{values.mean():.2f} ± {std:.2f}" if len(values) else "–"


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
    validate(problem := problem_of(config))
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
    configs = dict(zip(names, row_configs(names), strict=True))
    for config in configs.values():
        config.keep_weights = "tasks"
        if config.measure != "test":
            raise machine.UsageError(
                f"measure must be test, got {config.measure}: heads are compared on "
                "test images, and the probe's strength is chosen on validation images"
            )
        _require_head(config)
    # Mistakes in any row are found before the first one runs.
    require_own_output(workdir, *OUTPUT)
    require_no_run(workdir)
    jobs = {row: prepare(c, workdir / folder(row)) for row, c in configs.items()}
    rows: dict[str, list[dict[str, float]]] = {}
    try:
        for row, job in jobs.items():
            if finished(configs[row], workdir / folder(row)) is None:
                carry_out(job, strict=launch.strict())
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
            for seed, values in zip(configs[row].seeds, found, strict=True)
        ]
        text = write_csv(("row", "seed", *NAMES), lines)
        (workdir / "heads.csv").write_text(text, encoding="utf-8")
        with matplotlib.rc_context(STYLE):
            draw(rows).savefig(workdir / "heads.png", dpi=DPI)
        print(table(rows) + f"table and figure: {workdir}")
    return 0


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/heads/NAME.")
    _ROWS = define_rows(None, "Rows; by default the six above.")
    _CONFIG = launch.define_config("variant")
    launch.run(main)
