"""Claim 11's rows on photographs of waste: pretrained on ImageNet, and from scratch.

There are two tasks, each with a head. The first is the source with its 200 classes: it
has no epochs, because a pretrained network knows them. The second is the target with
six classes; some of its labels contradict the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcl.benchmark import base, finish

from . import transfer_data, transfer_model
from .choose import choose
from .claim import Run, Stage
from .keys import key_of, path_of
from .recorded import RECORDED
from .streams import QUICK_RATES, seeds, small
from .transfer_measures import of_fine_tuned, of_row
from .transfer_plane import of_joint

NOISE = (0.2, 0.4)  # shares of contradictory labels
AT_MANY = ("scratch", "fine_tune", "bp_star_star")  # rows at the second share too
QUICK = ("slda", "fine_tune", "scratch", "joint")
EPOCHS = {"quick": 2, "toy": 3, "full": 12}
SCRATCH = 3  # times as many epochs from scratch
HEAD_EPOCHS = 20  # of a head on features, which costs seconds
# A network with stored statistics does not normalise the changes in its activations:
# without a clip, a rate of .01 took it to chance, in a trial with a seed that decides
# nothing.
CLIP = 1.0
RATE = 0.01
RATES = (0.003, 0.01, 0.03)
BATCH_RATES = (0.003, 0.01, 0.03)
SCRATCH_RATES = (0.003, 0.01, 0.03, 0.1)
HEAD_RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
# Rows without accuracies on the source: a network from scratch knows nothing of it.
WITHOUT_SOURCE = ("scratch",)
# Their grids were extended after they had been decided on the first five seeds, so they
# are decided again, on seeds that no run had used.
DECIDED_AGAIN = ("bp_star_star", "slda", "lwf", "scratch")


class Row(NamedTuple):
    """A row of the claim.

    Attributes:
      row: of the table of methods, or an import path.
      label: in tables and figures.
      fields: its own config fields and method settings.
      features: whether it trains only a head, on the pretrained network's features.
      rates: the rates that are tried, if `choice` is empty; None: the row shares the
        rate of fine-tuning with the stored statistics.
      choice: other settings that are tried instead, at the rate `RATE`.
    """

    row: str
    label: str
    fields: Mapping[str, Any] = {}
    features: bool = False
    rates: tuple[float, ...] | None = None
    choice: tuple[Stage, ...] = ()


def _tried(field: str, *values: float) -> tuple[Stage, ...]:
    return (Stage({f"method.{field}": values}, tasks=2),)


_BATCH = {"model.statistics": "batch", "optimizer.clip": None}
_SCRATCH = {"model.pretrained": "none"} | _BATCH
# In the order of running: first the rows that cost seconds, then those that decide.
ROWS = {
    "bp_star_star": Row("bp_star_star", "BP**", {}, True, HEAD_RATES),
    "slda": Row(
        path_of(transfer_model.__name__, "target_slda"),
        "SLDA on frozen features",
        {"train.max_steps": 1},  # its head is in closed form
        True,
        choice=_tried("shrinkage", 1e-4, 1e-3, 1e-2, 1e-1, 3e-1, 9e-1),
    ),
    "fine_tune": Row("bp", "fine-tuned"),
    "scratch": Row("bp", "from scratch", _SCRATCH, rates=SCRATCH_RATES),
    "lwf": Row(
        "lwf",
        "LwF",
        {"strength": 1.0},
        choice=_tried("strength", 0.03, 0.1, 0.3, 1.0, 3.0),
    ),
    "ewc": Row(
        "ewc",
        "EWC",
        {"strength": 100.0, "samples": 1000, "chunk": 8},
        choice=_tried("strength", 1e0, 1e1, 1e3, 1e5),
    ),
    "agem": Row(
        "agem", "A-GEM", {"per_class": None, "per_task": 1000, "batch_size": 32}
    ),
    "fine_tune_batch": Row(
        "bp", "fine-tuned, the batch's statistics", _BATCH, rates=BATCH_RATES
    ),
    "joint": Row("joint", "joint", {"joint_once": True}),
}
ALONE = {"Transferred": "efficientnet_lite0", "SourceHead": "linear"}
"""Network with the source's outputs -> the same network without them."""


def runs(setting: str) -> tuple[Run, ...]:
    """All rows at 20 %, fine-tuning on clean labels, three rows at 40 %.

    At ``quick`` there are only a few: frozen features, fine-tuning, and special cases.
    """
    few, many = NOISE
    if setting == "quick":
        at = [(name, few) for name in QUICK] + [("fine_tune", 0.0)]
        return tuple(run_of(setting, name, noise) for name, noise in at)
    at = [(name, few) for name in ROWS]
    at.insert(3, ("fine_tune", 0.0))
    at += [(name, many) for name in AT_MANY]
    found = [run_of(setting, name, noise) for name, noise in at]
    # What rows with further seeds are compared with.
    beside = [run_of(setting, "fine_tune", noise) for noise in (0.0, *NOISE)]
    return *found, *(_again(setting, run) for run in beside)


def _again(setting: str, run: Run) -> Run:
    """A run with further seeds, where some were decided again; else the same run."""
    config = run.config.copy_and_resolve_references()
    config.seeds = _seeds(setting, again=True)
    return run._replace(
        name=f"{run.name}_again",
        label=f"{run.label}, further seeds",
        config=config,
        measure=of_row,
    )


def _seeds(setting: str, again: bool) -> tuple[int, ...]:
    """The first five seeds, or the next five; only ``toy`` rows were decided twice."""
    first = seeds(setting)
    if setting != "toy" or not again:
        return first
    return seeds(setting, 2 * len(first))[len(first) :]


def name_of(name: str, noise: float) -> str:
    """The name of a row's run."""
    return name + {0.0: "_clean", NOISE[1]: "_40"}.get(noise, "")


def run_of(setting: str, name: str, noise: float) -> Run:
    """A row's run in which a share of the target's training labels is contradictory."""
    row, measure = ROWS[name], of_row
    choice, tried = _choice(setting, name)
    if name == "fine_tune" and noise == NOISE[0]:
        measure = of_fine_tuned
    if name == "joint":
        measure = of_joint(lambda folder: _fine_tuned(setting, folder))
    label = f"{row.label}, " + (
        f"{100 * noise:.0f} % contradictory" if noise else "clean"
    )
    config = config_of(setting, name, noise)
    return Run(name_of(name, noise), label, config, choice, tried, measure)


def config_of(setting: str, name: str, noise: float) -> ConfigDict:
    """A row's config; at ``quick`` the data are digits, and the source two of them."""
    row = ROWS[name]
    epochs = EPOCHS[setting] * (SCRATCH if name in WITHOUT_SOURCE else 1)
    if setting == "quick":
        config = small(row.row, **{"data.num_tasks": 2, "data.label_noise": noise})
        config.train.epochs = epochs
        config.keep_weights = "epochs"
        return config
    config = base("transfer")
    config.seeds = _seeds(setting, name in DECIDED_AGAIN)
    whole = noise == NOISE[0] and name not in WITHOUT_SOURCE
    config.keep_weights = "epochs" if whole else "last"
    config.data.update(
        dataset=path_of(transfer_data.__name__, "images"),
        stream="split",
        scenario="task",
        num_tasks=2,
        task_classes=(transfer_data.SOURCE, transfer_data.TARGET),
        valid_fraction=0.1,
        stratified=True,
        mean=(127 / 255,),  # as for the published network
        std=(128 / 255,),
    )
    if noise:
        config.data.update(label_noise=noise, confusion=transfer_data.CONFUSION)
    own = {"pretrained": "features", "statistics": "stored", "dropout": 0.2}
    config.model = _model("Transferred") | own
    config.optimizer.update(lr=RATE, momentum=0.9, schedule="cosine", clip=CLIP)
    config.train.update(epochs=epochs, first_epochs=0, batch_size=32)
    if row.features:
        config.data.update(
            dataset=path_of(transfer_data.__name__, "features"), mean=(0.0,), std=(1.0,)
        )
        config.optimizer.clip = None
        config.model = _model("SourceHead")
        config.train.epochs = HEAD_EPOCHS
    return finish(config, row.row, {row.row: row.fields})


def _model(name: str) -> dict[str, Any]:
    path = path_of(transfer_model.__name__, name)
    return {"name": path, "head": "head", "dtype": "float32"}


def _choice(setting: str, name: str) -> tuple[tuple[Stage, ...], ConfigDict | None]:
    """What is tried for a row, and on which config.

    A rate is chosen on the target alone: forgetting of the source must not influence
    it. All rows that fine-tune with the stored statistics share one rate, tried once.
    The strength of a method that protects the source, and SLDA's shrinkage, are chosen
    by the mean accuracy of both tasks.
    """
    row = ROWS[name]
    if setting == "quick":
        stages = (Stage({"optimizer.lr": QUICK_RATES}, tasks=2),)
        tried = config_of(setting, name, NOISE[0])
        return (stages if name == "fine_tune" else ()), tried
    if row.choice:
        return row.choice, None
    rates = (Stage({"optimizer.lr": row.rates or RATES}, tasks=1),)
    config = config_of(setting, name if row.rates else "fine_tune", NOISE[0])
    config.data.update(num_tasks=1, task_classes=(transfer_data.TARGET,))
    config.train.first_epochs = None
    config.model.name = ALONE[config.model.name.rpartition(":")[2]]
    return rates, config


def _fine_tuned(setting: str, folder: Path) -> Path | None:
    """Folder of the fine-tuned run beside another run's folder, if it has run."""
    workdir = folder.parent.parent
    run = run_of(setting, "fine_tune", NOISE[0])
    # Its settings may be recorded; its weights, which are needed, are not.
    recorded = RECORDED if RECORDED.is_dir() else None
    chosen = choose(run, workdir, recorded, execute=False)
    found = None if chosen is None else workdir / "runs" / key_of(chosen.config)
    return found if found is not None and found.is_dir() else None
