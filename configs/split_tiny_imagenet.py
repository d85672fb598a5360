r"""Split Tiny-ImageNet, ten tasks of twenty classes, a head each, 64 × 64 pixels.

The AlexNet and the training of `split_cifar100`.

    python -m experiments.compare --config=configs/split_tiny_imagenet.py

The data set is taken from TFDS's manual folder (tiny-imagenet-200.zip) or downloaded.
An archive with fewer images a class works; say so with any figure measured on it. The
whole setting is for an accelerator; ``fast`` (three tasks, 500 images each, quarter
width, two epochs) is a test.
"""

from ml_collections import ConfigDict

from experiments.config import base, finish, variant

METHODS = {
    # Clipped: where the penalty is steep, a plain SGD step overshoots and diverges.
    "ewc": {"strength": 5000.0, "samples": 1000, "chunk": 8, "optimizer.clip": 10.0},
    "gpm": {
        "threshold": 0.97,
        "threshold_step": 0.003,
        "samples": (24, 100, 100, 125, 125),
        "model.use_bias": False,
    },
    "owm": {
        "alpha": 1.0,
        "alpha_decay": (1e-5, 1e-5, 1e-5, 1e-4, 1e-2),
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
    "er": {"capacity": 2600, "batch_size": 64},
    "derpp": {"capacity": 2600, "batch_size": 64, "alpha": 0.5},
}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, "fast", or both with a comma between."""
    row, chosen = variant(argument, ("fast",))
    config = base("split_tiny_imagenet")
    config.data.update(
        dataset="tiny_imagenet", stream="split", num_tasks=10, valid_fraction=0.05
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
        epochs=100,
        batch_size=64,
        patience=5,
        lr_factor=3.0,
        lr_min=1e-4,
        select="best",
        select_metric="loss",
    )
    finish(config, row, METHODS)
    if chosen == "fast":
        config.name = "split_tiny_imagenet_fast"
        config.data.update(num_tasks=3, classes_per_task=20, train_per_task=500)
        config.data.test_per_task = 200
        config.model.width = 0.25
        config.train.epochs = 2
    return config
