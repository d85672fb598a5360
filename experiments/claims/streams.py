"""The streams, rows, seeds and choices of settings that claims share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxcl.benchmark import load
from jaxcl.strategies import label

from ..runs.arguments import CONFIGS
from .claim import Run, Stage

FIRST_SEED = 200
"""The first seed of deciding runs; no earlier recorded run has used these seeds."""

RATE = 0.02
"""The learning rate at which strengths are compared first."""
RATES = (0.005, 0.01, 0.02, 0.05)
MORE_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
QUICK_RATES = (0.02, 0.05)
QUICK_CHOICES = ("bp", "ewc")
"""Rows with chosen settings at ``quick``: BP's rate; EWC's strength and rate."""

# A method's own strength: its field and the values that are tried.
STRENGTHS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "ol": ("method.extractor", (0.25, 0.5, 0.75)),
    "ewc": ("method.strength", (1e1, 1e2, 1e3, 1e4, 1e5)),
    "si": ("method.strength", (1e-2, 1e-1, 1e0, 1e1, 1e2)),
    "mas": ("method.strength", (1e-2, 1e-1, 1e0, 1e1, 1e2)),
    "lwf": ("method.strength", (1e-1, 1e0, 1e1)),
    "hat": ("method.strength", (0.05, 0.1, 0.25, 0.75)),
    "owm": ("method.alpha_decay", (1e-5, 1e-3, 1e-1)),
    "gpm": ("method.threshold", (0.95, 0.97, 0.99)),
}


MNIST_ROWS = (
    "bp",
    "bp_star_star",
    "ewc",
    "si",
    "mas",
    "lwf",
    "owm",
    "gpm",
    "hat",
    "agem",
    "er",
    "derpp",
)
"""Rows that claims compare on MNIST: BP, BP** and ten dedicated methods."""


def seeds(setting: str, number: int = 5) -> tuple[int, ...]:
    """The first `number` deciding seeds; two at ``quick``."""
    return tuple(range(FIRST_SEED, FIRST_SEED + (2 if setting == "quick" else number)))


def config_of(file: str, row: str, variant: str = "", **fields: Any) -> ConfigDict:
    """A row's config from a file of `configs`, with some fields set."""
    argument = ",".join(filter(None, [row, variant]))
    config = load(CONFIGS / f"{file}.py").get_config(argument)
    config.update_from_flattened_dict(fields)
    return config


def small(row: str, **fields: Any) -> ConfigDict:
    """The config at ``quick``: digits, three tasks of two classes, seconds per run."""
    config = config_of("digits", row)
    config.name = "claims_quick"
    config.seeds = seeds("quick")
    config.keep_weights = "tasks"
    config.data.update(num_tasks=3, classes_per_task=2, train_per_task=60)
    config.data.update(test_per_task=40, valid_fraction=0.2)
    if "widths" in config.model:
        config.model.widths = (16,)
    config.train.update(epochs=1)
    if row == "joint":
        config.joint_once = True
    config.update_from_flattened_dict(fields)
    return config


def choice(setting: str, row: str, strength: bool = True) -> tuple[Stage, ...]:
    """The stages that choose a row's settings, by the same rule for every row.

    For a method with a strength, the strengths are tried on tasks 1–2 at the rate .02;
    then four rates are tried with each of the best two strengths. For a row without a
    strength, eight rates are tried. The setting with the best mean accuracy of tasks
    1–3 after task 3, on validation data, wins.

    Args:
      setting: at "full" nothing is chosen: the papers' settings are used.
      row: of the table of methods.
      strength: False: the config's strength is kept, and only rates are tried.
    """
    if setting == "full":
        return ()
    field, values = STRENGTHS.get(row, ("", ()))
    if setting == "quick":
        if row not in QUICK_CHOICES:
            return ()
        values, more, few = values[:2], QUICK_RATES, QUICK_RATES[:1]
    else:
        more, few = MORE_RATES, RATES
    if not values:
        return (Stage({"optimizer.lr": more}, tasks=3),)
    rates = Stage({"optimizer.lr": few}, tasks=3)
    return (Stage({field: values}, tasks=2, keep=2), rates) if strength else (rates,)


# --- The chart: split CIFAR-100, ten tasks of ten classes, a head each ---------------

# Name -> row, label, fields that differ from the row's own. In the order of running:
# rows that decide pairs come first.
CHART: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bp": ("bp", "BP", {}),
    "bp_star_star": ("bp_star_star", "BP**", {}),
    "gpm": ("gpm", "GPM", {}),
    "ewc": ("ewc", "EWC", {}),
    "hat": ("hat", "HAT", {}),
    "bp_constant": ("bp", "BP, constant rate", {"optimizer.schedule": "constant"}),
    "bp_star_constant": (
        "bp_star",
        "BP*, constant rate",
        {"optimizer.schedule": "constant"},
    ),
    "ol": ("ol", "OL", {}),
    "random_frozen": ("random_frozen", "Random, frozen", {}),
    "linear": ("linear", "Linear", {}),
    "joint": ("joint", "Joint", {}),
    "owm": ("owm", "OWM", {}),
    "agem": ("agem", "A-GEM", {}),
    "bp_star": ("bp_star", "BP*", {}),
    "hat_published": ("hat", "HAT, λ .75", {"method.strength": 0.75}),
    "gpm_published": (
        "gpm",
        "GPM, .97 + .003 t",
        {"method.threshold": 0.97, "method.threshold_step": 0.003},
    ),
}
DEDICATED = ("ewc", "owm", "hat", "gpm", "agem")
"""The chart's rows of methods that are made against forgetting."""


# Rows whose final features a claim reads, so that their weights are kept.
PROBED = ("bp", "bp_star", "bp_star_star", "ol", "random_frozen", "joint")


def keep_last(config: ConfigDict) -> None:
    """Sets a config to keep the last weights if a claim reads the row's features."""
    if config.row in PROBED and config.keep_weights == "none":
        config.keep_weights = "last"


def chart_run(setting: str, name: str) -> Run:
    """A run of the chart, by its name; at ``quick`` it is on digits.

    At ``full`` the whole network trains with patience as in the papers. The runs with a
    constant rate or a published strength do not differ from the others there.
    """
    row, title, fields = CHART[name]
    if setting == "full":
        config = config_of("split_cifar100", row, seeds=seeds(setting))
        if row == "joint":
            config.joint_once = True
        return Run(name, title, config)
    if setting == "quick":
        config = small(row, **fields)
    else:
        config = config_of("split_cifar100", row, "chart", seeds=seeds(setting))
        config.update_from_flattened_dict(dict(fields))
    keep_last(config)
    published = name.endswith("_published")
    return Run(name, title, config, choice(setting, row, strength=not published))


def cifar_run(setting: str, row: str, tasks: int) -> Run:
    """A row on the chart's network, with split CIFAR-100 in another number of tasks."""
    run = chart_run(setting, row)
    config = run.config.copy_and_resolve_references()
    if setting != "quick":
        config.name = f"{config.name}_{tasks}"
        config.data.num_tasks = tasks
    return run._replace(name=f"cifar_{tasks}_{row}", config=config)


def tiny_run(setting: str, row: str) -> Run:
    """A row on split Tiny-ImageNet, ten tasks of twenty classes, one network for all.

    The data set is a subset if the archive is one: 100 training and 25 test images of
    each class.
    """
    if setting == "quick":
        config = small(row)
    else:
        variant = "chart" if setting == "toy" else ""
        config = config_of("split_tiny_imagenet", row, variant, seeds=seeds(setting))
        config.keep_weights = {"hat": "tasks", "bp": "tasks"}.get(row, "none")
    return Run(f"tiny_{row}", label(row), config, choice(setting, row))


# --- MNIST: 784-400-400, a head per task, two epochs of batch 64 ---------------------


def permuted_run(
    setting: str, row: str, *, tasks: int = 10, number: int = 20, **fields: Any
) -> Run:
    """A row on permuted MNIST; at ``quick`` it is the same run as on other streams."""
    if setting == "quick":
        config = small(row)
    else:
        config = config_of("mnist_claims", row, seeds=seeds(setting, number))
        config.data.num_tasks = tasks
    config.update_from_flattened_dict(fields)
    # Claims read the features of ten tasks, and the gates of any number.
    if setting != "quick" and (tasks == 10 or row == "hat"):
        config.keep_weights = "tasks" if row == "bp" else "last"
    return Run(f"permuted_{row}", label(row), config, choice(setting, row))


def split_mnist_run(setting: str, row: str, *, number: int = 20, **fields: Any) -> Run:
    """A row on split MNIST, five tasks of two digits."""
    if setting == "quick":
        config = small(row)
    else:
        config = config_of("mnist_claims", row, "split", seeds=seeds(setting, number))
    config.update_from_flattened_dict(fields)
    keep_last(config)
    return Run(f"split_mnist_{row}", label(row), config, choice(setting, row))
