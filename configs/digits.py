r"""Split digits: the quick look, offline.

scikit-learn's 1,797 digits of 8 × 8 pixels in five tasks of two classes each.

    python -m experiments.compare --config=configs/digits.py
"""

from ml_collections import ConfigDict

from jaxcl.benchmark import base, finish, variant

METHODS = {
    # Clipped: where the penalty is steep, a plain SGD step overshoots and diverges.
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


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row."""
    row, _ = variant(argument)
    config = base("digits")
    config.rows = ("bp", "bp_star", "bp_star_star", "ewc", "joint")
    config.model.update(name="mlp", widths=(100, 100), dropout=0.0)
    config.optimizer.lr = 0.05
    config.train.update(epochs=20, batch_size=10)
    return finish(config, row, METHODS)
