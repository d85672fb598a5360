r"""Split Tiny-ImageNet, ten tasks of twenty classes, a head each, 64 × 64 pixels.

The network, the training and every method's settings are those of `split_cifar100`,
with half as many epochs and twice the memory for replay.

    python -m experiments.compare --config=configs/split_tiny_imagenet.py

The data set is read from TFDS's manual folder (tiny-imagenet-200.zip) or downloaded. An
archive with fewer images per class works; state this with any figure measured on it.
The whole setting needs an accelerator. ``fast`` (three tasks, 500 images each, quarter
width, two epochs) is a test. ``toy`` is a small network: an eighth of the width, no
biases, 20 epochs with momentum .9 at a constant rate of .02. GPM has its paper's norm
and rate of .01; the other methods have no norm. ``toy`` takes 17 minutes per method on
two cores with 100 images per class.

    python -m experiments.compare --config=configs/split_tiny_imagenet.py:toy
    python -m experiments.sweep --config=configs/split_tiny_imagenet.py:toy

``chart`` is the network and training of the variant ``chart`` of `split_cifar100`, at
an eighth of the width, for `experiments.claims`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl.benchmark import Variant, finish, load, variant

CIFAR = load(Path(__file__).with_name("split_cifar100.py"))

# Twice as many classes as CIFAR-100, with the same number of examples of each.
METHODS = CIFAR.METHODS | {
    row: CIFAR.METHODS[row] | {"capacity": 2600} for row in ("er", "derpp")
}
VARIANTS = {
    "fast": Variant(
        CIFAR.VARIANTS["fast"].fields
        | {
            "name": "split_tiny_imagenet_fast",
            "data.classes_per_task": 20,
            "data.test_per_task": 200,
        },
        CIFAR.VARIANTS["fast"].methods,
    ),
    "chart": Variant(
        CIFAR.VARIANTS["chart"].fields
        | {"name": "split_tiny_imagenet_chart", "model.width": 0.125},
        CIFAR.VARIANTS["chart"].methods,
    ),
    "toy": Variant(
        CIFAR.VARIANTS["half"].fields
        | {
            "name": "split_tiny_imagenet_toy",
            "rows": ("bp_star_star", "ewc", "gpm", "hat"),
            "data.tasks": None,
            "model.width": 0.125,
            "model.use_bias": False,
            "train.epochs": 20,
        },
        CIFAR.VARIANTS["half"].methods | {"owm": {"train.epochs": 20}},
    ),
}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, a variant of this file, or both with a comma between."""
    row, chosen = variant(argument, VARIANTS)
    config = CIFAR.benchmark()
    config.name = "split_tiny_imagenet"
    config.data.update(dataset="tiny_imagenet", mean=None, std=None)
    config.train.epochs = 100
    return finish(config, row, METHODS, VARIANTS.get(chosen))


def sweep() -> dict[str, dict[str, tuple]]:
    """Strengths for ``toy``, chosen on its first two tasks."""
    first = {"data.tasks": ((0, 2),), "seeds": ((100,),)}
    return {
        "ewc": first | {"method.strength": (1.0, 10.0, 100.0, 1000.0)},
        "hat": first | {"method.strength": (0.01, 0.03, 0.1, 0.25)},
    }
