r"""Permuted MNIST, each example seen once: the setting of the A-GEM paper.

MLP 784-256-256-10, SGD, one epoch of batch 10 per task. Of the 20 tasks the first three
are used to choose the settings (`experiments.sweep`, on their validation data). The
other 17 are reported.

    python -m experiments.run --config=configs/permuted_mnist_online.py:agem \
        --workdir=DIR
    python -m experiments.compare --config=configs/permuted_mnist_online.py
    python -m experiments.sweep --config=configs/permuted_mnist_online.py

Published (Chaudhry et al., Efficient lifelong learning with A-GEM, 2019, 5 seeds), ACC
and forgetting: fine-tuning 47.9 and .51, EWC 68.3 and .29, MAS 69.6 and .27, A-GEM 89.1
and .06, joint 95.3. A step of A-GEM at its reference batch of 256 takes 4 ms on one
core; five seeds take a quarter of an hour on two cores. The variant ``fast`` is three
tasks of 2,000 images, for a test.
"""

from ml_collections import ConfigDict

from jaxcl.benchmark import Variant, base, finish, variant

METHODS = {
    "gpm": {"threshold": (0.95, 0.99, 0.99)},
    # The best of the sweep below.
    "ewc": {"strength": 100.0, "online": True, "optimizer.clip": 10.0},
    "si": {"strength": 0.1, "optimizer.lr": 0.1},
    "mas": {"strength": 0.1, "optimizer.lr": 0.1},
    "lwf": {"strength": 1.0},
    "agem": {"per_class": 25, "batch_size": 256, "optimizer.lr": 0.1},
    "er": {"capacity": 17 * 250, "batch_size": 10, "optimizer.lr": 0.1},
    "derpp": {
        "capacity": 17 * 250,
        "batch_size": 10,
        "alpha": 0.5,
        "beta": 0.5,
        "optimizer.lr": 0.1,
    },
}


VARIANTS = {
    "fast": Variant(
        {
            "name": "permuted_mnist_online_fast",
            "data.num_tasks": 6,
            "data.tasks": (3, 6),
            "data.train_per_task": 2000,
            "data.test_per_task": 1000,
        }
    )
}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, "fast", or both with a comma between."""
    row, chosen = variant(argument, VARIANTS)
    config = base("permuted_mnist_online")
    config.rows = ("bp", "ewc", "mas", "agem")
    config.data.update(
        dataset="mnist",
        stream="permuted",
        scenario="domain",
        num_tasks=20,
        tasks=(3, 20),
        valid_fraction=1 / 12,  # 5,000 of the 60,000
        mean=(0.0,),
        std=(1.0,),
    )
    config.model.update(name="mlp", widths=(256, 256), dropout=0.0, start="normal")
    config.optimizer.lr = 0.03
    config.train.update(epochs=1, batch_size=10)
    return finish(config, row, METHODS, VARIANTS.get(chosen))


def sweep() -> dict[str, dict[str, tuple]]:
    """The paper's protocol: settings are chosen on the first three tasks."""
    first = {"data.tasks": ((0, 3),), "seeds": ((100, 101),)}
    rates = {"optimizer.lr": (0.01, 0.03, 0.1)}
    strengths = {"method.strength": (0.1, 1.0, 10.0, 100.0, 1000.0)}
    return {
        "bp": first | rates,
        "ewc": first | strengths,
        "mas": first | {"method.strength": (0.001, 0.01, 0.1, 1.0)},
        "agem": first | rates,
    }
