r"""Digits: a first, quick look that needs no download.

scikit-learn's 1,797 digits of 8 × 8 pixels in five tasks of two classes each, with a
head per task. With ``permuted`` there are ten tasks of all ten classes and one shared
head; each task has its own order of the pixels. There BP forgets, and methods differ.

    python -m experiments.compare --config=configs/digits.py
    python -m experiments.compare --config=configs/digits.py:permuted
"""

from ml_collections import ConfigDict

from jaxcl.benchmark import Variant, base, finish, variant

METHODS = {
    # Clipped: where the penalty is steep, a plain SGD step is too long and diverges.
    "ewc": {"strength": 100.0, "optimizer.clip": 10.0},
    "gpm": {"threshold": 0.95},
    "owm": {"alpha": 1.0},
    "hat": {"strength": 0.75, "optimizer.clip": 10000.0},
    "si": {"strength": 0.1},
    "mas": {"strength": 0.1},
    "lwf": {"strength": 1.0},
    "agem": {"per_class": 10, "batch_size": 50},
    "er": {"capacity": 100},
    "derpp": {"capacity": 100},
}

VARIANTS = {
    "permuted": Variant(
        {
            "name": "permuted_digits",
            "rows": ("bp", "ewc", "gpm", "er", "joint"),
            "data.stream": "permuted",
            "data.scenario": "domain",
            "data.num_tasks": 10,
        },
        # The best of .9, .95 and .99 on validation data of two other seeds. EWC's
        # strength, too: the best of 1, 10, 100 and 1,000.
        methods={"gpm": {"threshold": 0.9}},
    )
}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, "permuted", or both with a comma between."""
    row, chosen = variant(argument, VARIANTS)
    config = base("digits")
    config.rows = ("bp", "bp_star", "bp_star_star", "ewc", "joint")
    config.model.update(name="mlp", widths=(100, 100), dropout=0.0)
    config.optimizer.lr = 0.05
    config.train.update(epochs=20, batch_size=10)
    return finish(config, row, METHODS, VARIANTS.get(chosen))
