r"""Training tricks compared with methods: the setting of Stable SGD.

Permuted MNIST, or with ``rotated`` rotated MNIST: twenty tasks, one shared head, one
epoch each, MLP 784-256-256, pixels in [0, 1]; the first task is not permuted. Each row
has the authors' rate and batch (naive SGD: .01, batch 10; A-GEM and ER: .1, batch 32,
one example per class and task, ten replayed). The tricks are set as fields:

    python -m experiments.run --config=stable_sgd:bp --workdir=DIR \
        --config.optimizer.lr=0.08 --config.optimizer.decay_per_task=0.8 \
        --config.optimizer.momentum=0.8 --config.model.dropout=0.25 \
        --config.train.batch_size=64

Source: Mirzadeh et al., NeurIPS 2020, https://arxiv.org/abs/2006.06958, its code, and
the first and fifth issue threads of its repository. This command runs all of it:

    python -m experiments.claims --claim=tricks --setting=toy
"""

from ml_collections import ConfigDict

from jaxcl.benchmark import Variant, base, finish, variant

_MEMORY = {"optimizer.lr": 0.1, "train.batch_size": 32}
METHODS = {
    "agem": {"per_class": 1, "batch_size": 10} | _MEMORY,
    "er": {"capacity": 200, "batch_size": 10} | _MEMORY,  # 20 tasks of ten classes
}
VARIANTS = {
    # Task t is rotated by 10° (t − 1) minus a draw from U(0°, 10°), as in the authors'
    # script. This includes the first task.
    "rotated": Variant(
        {
            "name": "stable_sgd_rotated",
            "data.stream": "rotated",
            "data.first_permuted": True,  # has no effect here
            "data.angle_step": 10.0,
            "data.angle_draw": (-10.0, 0.0),
        }
    ),
}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, "rotated", or both with a comma between."""
    row, chosen = variant(argument, VARIANTS)
    config = base("stable_sgd")
    config.data.update(
        dataset="mnist",
        stream="permuted",
        scenario="domain",
        num_tasks=20,
        first_permuted=False,
        valid_fraction=0.0,
        mean=(0.0,),
        std=(1.0,),
    )
    config.model.update(name="mlp", widths=(256, 256), use_bias=True, dropout=0.0)
    config.optimizer.lr = 0.01
    config.train.update(epochs=1, batch_size=10)
    config.rows = ("bp", "agem", "er", "joint")
    return finish(config, row, METHODS, VARIANTS.get(chosen))
