"""The bench's cases: networks on random images, and the methods timed on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxcl.data.source import Source
from jaxcl.nn import models
from jaxcl.nn.efficientnet import EfficientNetLite0


class End(NamedTuple):
    """The work of a method at a task's end, and how many examples it reads there."""

    row: str
    settings: dict[str, Any]
    examples: int


class Case(NamedTuple):
    """A network on data of one shape, and the methods timed on it."""

    shape: tuple[int, ...]
    model: Callable[[int], Any]  # number of outputs -> module
    stream: str
    scenario: str
    batch: int
    steps: int  # per epoch; one timing is of one epoch
    methods: dict[str, dict[str, Any]]  # row -> settings
    ends: dict[str, End] = {}  # what is computed -> the method and its settings
    clipped: tuple[str, ...] = ()  # rows that are timed with a clip of the gradient too


MNIST, CIFAR = (28, 28, 1), (32, 32, 3)
GPM = {"threshold": 0.95, "samples": 300}
READ = {"strength": 10.0, "samples": 2000}

CASES = (
    {
        "mlp10": Case(
            MNIST,
            lambda k: models.MLP((100, 100), k, use_bias=False),
            "permuted",
            "domain",
            10,
            3000,
            {"bp": {}, "ewc": {"strength": 10.0, "samples": 100}, "gpm": GPM},
            {
                "Fisher, empirical": End("ewc", READ | {"fisher": "empirical"}, 2000),
                "Fisher, exact": End("ewc", READ | {"fisher": "exact"}, 2000),
                "MAS": End("mas", READ, 2000),
                "GPM": End("gpm", GPM, 300),
            },
            clipped=("bp", "ewc"),
        ),
        # The network, batch and penalty of OWM's paper.
        "mlp100": Case(
            MNIST,
            lambda k: models.MLP((100,), k),
            "permuted",
            "domain",
            100,
            300,
            {"bp": {}, "owm": {"alpha": 1.0, "norm_penalty": 1e-3}},
        ),
        "mlp256": Case(
            MNIST,
            lambda k: models.MLP((256, 256), k),
            "permuted",
            "domain",
            10,
            1000,
            {
                "bp": {},
                "si": {"strength": 0.1},
                "mas": {"strength": 0.1, "samples": 100},
                "lwf": {"strength": 1.0},
                "agem": {"batch_size": 10},
                "er": {},
                "derpp": {},
            },
        ),
        "mlp64": Case(
            MNIST,
            lambda k: models.MLP((400, 400), k),
            "permuted",
            "task",
            64,
            300,
            {"bp": {}, "hat": {"strength": 1.5}, "ol": {}},
        ),
        "alexnet": Case(
            CIFAR,
            lambda k: models.AlexNet(k, use_bias=False),
            "split",
            "task",
            64,
            8,
            {"bp": {}, "gpm": {"threshold": 0.97, "samples": 20}},
        ),
        "resnet18": Case(
            CIFAR, lambda k: models.ResNet18(k), "split", "task", 64, 4, {"bp": {}}
        ),
    }
    | {
        # Fine-tuning on photographs: stored statistics, as in the published network.
        f"efficientnet{side}": Case(
            (side, side, 3),
            lambda k: EfficientNetLite0(k, statistics="stored", dropout=0.0),
            "split",
            "task",
            32,
            4,
            {"bp": {}},
        )
        for side in (96, 128)
    }
    | {
        # Without dropout, at the widths that experiments use.
        name: Case(
            CIFAR,
            partial(
                models.AlexNet,
                width=width,
                use_bias=False,
                dropout=0.0,
                dropout_late=0.0,
            ),
            "split",
            "task",
            64,
            steps,
            {"bp": {}},
        )
        for name, width, steps in (
            ("alexnet_no_dropout", 1.0, 8),
            ("alexnet_half", 0.5, 16),
            ("alexnet_quarter", 0.25, 32),
        )
    }
)


def source(case: Case) -> Source:
    """Random images: the cost of a step does not depend on what is learned."""
    rng = np.random.default_rng(0)
    classes, tasks = 10, 3
    each = case.batch * case.steps
    n = each if case.stream == "permuted" else each * tasks
    x = rng.integers(0, 256, (n, *case.shape), np.uint8)
    y = (np.arange(n) % classes).astype(np.int32)
    if case.stream == "split":
        classes = 3 * classes
        y = (np.arange(n) % classes).astype(np.int32)
    names = tuple(map(str, range(classes)))
    channels, test = case.shape[-1], 10 * classes
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Source("random", x, y, x[:test], y[:test], names, 255, mean, std)
