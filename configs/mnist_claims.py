r"""MNIST for the claims: one network and training for all methods, a head per task.

MLP 784-400-400, SGD, batch 64, two epochs per task, 10 % held out. `experiments.claims`
chooses the rate, and the strength of a method that has one, on validation data. There
are ten permuted tasks, or with ``split`` five tasks of two digits.

    python -m experiments.claims --claim=unstable --setting=toy
"""

from ml_collections import ConfigDict

from jaxcl.benchmark import Variant, base, finish, variant

METHODS = {
    # Clipped: where the penalty is steep, a plain SGD step is too long and diverges.
    "ewc": {
        "strength": 100.0,
        "online": True,
        "samples": 2000,
        "optimizer.clip": 10.0,
    },
    "si": {"strength": 0.1},
    "mas": {"strength": 0.1},
    "lwf": {"strength": 1.0},
    # With a head per task only the two hidden layers are projected.
    "gpm": {"threshold": 0.97, "samples": 300},
    "owm": {"alpha": 1.0, "alpha_decay": 1e-3, "progress": "task"},
    "hat": {"strength": 0.75, "optimizer.clip": 10000.0},
    "agem": {"per_class": 25, "batch_size": 64},
    "er": {"capacity": 2500, "batch_size": 64},
    "derpp": {"capacity": 2500, "batch_size": 64, "alpha": 0.5},
    "joint": {"joint_once": True},
}

VARIANTS = {
    "split": Variant(
        {
            "name": "mnist_claims_split",
            "data.stream": "split",
            "data.num_tasks": 5,
        }
    )
}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, "split", or both with a comma between."""
    row, chosen = variant(argument, VARIANTS)
    config = base("mnist_claims")
    config.data.update(
        dataset="mnist",
        stream="permuted",
        scenario="task",
        num_tasks=10,
        valid_fraction=0.1,
        mean=(0.1307,),
        std=(0.3081,),
    )
    config.model.update(name="mlp", widths=(400, 400), use_bias=True, dropout=0.0)
    config.optimizer.lr = 0.02
    config.train.update(epochs=2, batch_size=64)
    return finish(config, row, METHODS, VARIANTS.get(chosen))
