r"""Split Tiny-ImageNet, ten tasks of twenty classes, a head each, 64 × 64 pixels.

The network, the training and every method's settings are those of `split_cifar100`, of
half as many epochs.

    python -m experiments.compare --config=configs/split_tiny_imagenet.py

The data set is taken from TFDS's manual folder (tiny-imagenet-200.zip) or downloaded.
An archive with fewer images a class works; say so with any figure measured on it. The
whole setting is for an accelerator; ``fast`` (three tasks, 500 images each, quarter
width, two epochs) is a test. ``toy`` is a small network, an eighth of the width without
norm or biases whatever the method, 20 epochs with momentum .9 at a rate of .02 that
stays: 17 minutes a method on two cores with 100 images a class.

    python -m experiments.compare --config=configs/split_tiny_imagenet.py:toy
    python -m experiments.sweep --config=configs/split_tiny_imagenet.py:toy
"""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.config import variant
from experiments.launch import load

CIFAR = load(Path(__file__).with_name("split_cifar100.py"))


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, "fast" or "toy", or a row and one, with a comma between."""
    row, chosen = variant(argument, ("fast", "toy"))
    config = CIFAR.get_config(f"{row},{chosen}".replace("toy", "half"))
    config.name = "split_tiny_imagenet"
    config.data.update(dataset="tiny_imagenet", mean=None, std=None)
    if row != "owm":  # which has its own number
        config.train.epochs = 100
    if row in ("er", "derpp"):  # twice the classes, as many examples of each
        config.method.capacity = 2600
    if chosen == "fast":
        config.name = "split_tiny_imagenet_fast"
        config.data.update(classes_per_task=20, test_per_task=200)
        config.train.epochs = 2
    if chosen == "toy":
        config.name = "split_tiny_imagenet_toy"
        config.rows = ("bp_star_star", "ewc", "gpm", "hat")
        config.data.tasks = None
        config.model.update(width=0.125, norm="none", use_bias=False)
        config.train.update(epochs=20, patience=None)
    return config


def sweep() -> dict[str, dict[str, tuple]]:
    """Strengths for ``toy``, by its first two tasks."""
    first = {"data.tasks": ((0, 2),), "seeds": ((100,),)}
    return {
        "ewc": first | {"method.strength": (1.0, 10.0, 100.0, 1000.0)},
        "hat": first | {"method.strength": (0.01, 0.03, 0.1, 0.25)},
    }
