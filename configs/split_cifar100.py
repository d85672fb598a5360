r"""Split CIFAR-100, ten tasks of ten classes, a head each: AlexNet as in HAT and GPM.

SGD at rate 0.05, batch 64, 5 % held out. The rate is divided by 3 after 5 epochs
without a better validation loss, until it is below 1e-4 or 200 epochs are over. The
next task starts from the weights with the lowest validation loss (BP: from the last
weights; BP*: from those with the best validation accuracy).

    python -m experiments.compare --config=configs/split_cifar100.py
    python -m experiments.compare --config=configs/split_cifar100.py:fast

``chart`` is the network of `experiments.claims`: quarter width, no normalisation,
dropout 0 / .3, SGD with momentum .9 (Nesterov) and weight decay 5e-4, and a cosine
schedule over the 20 epochs of each task. A row with its trials takes two cores up to an
hour, BP** less than half of that.

The whole setting needs an accelerator: a step takes 110 ms per seed on two cores, and a
task takes about 10,000 steps. ``fast`` (three tasks, 500 images each, quarter width,
two epochs) takes a minute on two cores. ``half`` takes two cores twenty minutes per
method: the first five tasks at half the width, 12 epochs with momentum .9 at a constant
rate of .02 (GPM: its paper's .01). ``class`` makes it class-incremental: one head over
the classes so far.

In the bar chart of the note that the claims are from (Arnolily/Note on GitHub), five
seeds, its network not stated: BP 63.23, BP* 68.1, BP** 76.32, EWC 68.34.
"""

from ml_collections import ConfigDict

from jaxcl.benchmark import Variant, base, finish, variant
from jaxcl.strategies import METHODS as TABLE

METHODS = {
    # Clipped: where the penalty is steep, a plain SGD step is too long and diverges.
    "ewc": {"strength": 5000.0, "samples": 1000, "chunk": 8, "optimizer.clip": 10.0},
    # The GPM paper's setting: BatchNorm with the batch's own statistics, no biases.
    "gpm": {
        "threshold": 0.97,
        "threshold_step": 0.003,
        "samples": (24, 100, 100, 125, 125),
        "model.norm": "batch_current",
        "model.use_bias": False,
        "optimizer.lr": 0.01,
        "train.patience": 6,
        "train.lr_factor": 2.0,
        "train.lr_min": 1e-5,
        "train.eval_batch_size": 64,
    },
    # The OWM paper's setting for its CIFAR networks, but epochs are not chosen on test
    # data.
    "owm": {
        "alpha": 1.0,
        "alpha_decay": (1e-5, 1e-5, 1e-5, 1e-4, 1e-2),
        "progress": "task",
        "optimizer.lr": 0.02,
        "optimizer.momentum": 0.9,
        "optimizer.clip": 10.0,
        "train.epochs": 25,
        "train.patience": None,
        "train.select": "last",
        "model.use_bias": False,
    },
    "hat": {"strength": 0.75, "optimizer.clip": 10000.0},
    "si": {"strength": 0.1},
    "mas": {"strength": 0.1, "samples": 1000, "chunk": 8},
    "lwf": {"strength": 1.0},
    "agem": {"per_class": 13, "batch_size": 64},
    "er": {"capacity": 1300, "batch_size": 64},
    "derpp": {"capacity": 1300, "batch_size": 64, "alpha": 0.5},
}


# Fields of GPM and OWM that differ in the variant "chart". Momentum and weight decay
# move weights out of the gradient's subspace, so the updates are projected instead.
_LIKE_ALL = {
    "model.norm": "none",
    "model.use_bias": True,
    "optimizer.lr": 0.02,
    "train.epochs": 20,
    "train.patience": None,
    "train.select": "best",
    "train.eval_batch_size": 256,
}
CHART = {
    "gpm": _LIKE_ALL | {"where": "updates", "threshold_step": 0.0},
    "owm": _LIKE_ALL | {"where": "updates", "alpha_decay": 1e-3},
    "ol": {"train.select": "last"},
    "joint": {"joint_once": True},
}

VARIANTS = {
    "class": Variant(
        {
            "name": "split_cifar100_class",
            "data.scenario": "class",
            # HAT must be told the task.
            "rows": tuple(row for row in TABLE if row != "hat"),
        },
        # The one head is projected, too: OWM's by its paper's α.
        methods={
            "gpm": {"samples": (24, 100, 100, 125, 125, 125)},
            "owm": {"alpha_decay": (1e-5, 1e-5, 1e-5, 1e-4, 1e-2, 1e-1)},
        },
    ),
    "half": Variant(
        {
            "name": "split_cifar100_half",
            "rows": ("bp", "bp_star_star", "hat"),
            "data.tasks": (0, 5),
            "model.width": 0.5,
            "optimizer.lr": 0.02,
            "optimizer.momentum": 0.9,
            "train.epochs": 12,
            "train.patience": None,
        },
        # The same number of epochs for every method, at a constant rate.
        methods={"gpm": {"train.patience": None}, "owm": {"train.epochs": 12}},
    ),
    # The network and training of `experiments.claims`, the same for every row. A
    # method's own settings that are not given here are chosen there, on validation
    # data.
    "chart": Variant(
        {
            "name": "split_cifar100_chart",
            "model.width": 0.25,
            "model.norm": "none",
            "model.use_bias": True,
            "model.dropout": 0.0,
            "model.dropout_late": 0.3,
            "optimizer.lr": 0.02,
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 5e-4,
            "optimizer.schedule": "cosine",
            "train.epochs": 20,
            "train.batch_size": 64,
            "train.eval_batch_size": 256,
            "train.patience": None,
            "train.select": "best",
            "train.select_metric": "accuracy",
        },
        methods=CHART,
    ),
    "fast": Variant(
        {
            "name": "split_cifar100_fast",
            "data.num_tasks": 3,
            "data.classes_per_task": 10,
            "data.train_per_task": 500,
            "data.test_per_task": 500,
            "model.width": 0.25,
            "train.epochs": 2,
        },
        methods={"owm": {"train.epochs": 2}},
    ),
}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, a variant of this file, or both with a comma between."""
    row, chosen = variant(argument, VARIANTS)
    return finish(benchmark(), row, METHODS, VARIANTS.get(chosen))


def benchmark() -> ConfigDict:
    """The fields that all rows and variants share."""
    config = base("split_cifar100")
    config.data.update(
        dataset="cifar100",
        stream="split",
        num_tasks=10,
        valid_fraction=0.05,
        # The values in the papers' code; the std of the pixels is larger.
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    )
    config.model.update(
        name="alexnet",
        width=1.0,
        norm="none",
        use_bias=True,
        dropout=0.2,
        dropout_late=0.5,
    )
    config.optimizer.lr = 0.05
    config.train.update(
        epochs=200,
        batch_size=64,
        patience=5,
        lr_factor=3.0,
        lr_min=1e-4,
        patience_metric="loss",
        select="best",
        select_metric="loss",
    )
    return config
