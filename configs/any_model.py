r"""Two CIFAR-100 tasks on a network of Equinox or NNX: is the old task kept?

    python -m experiments.compare --config=configs/any_model.py:equinox
    python -m experiments.compare --config=configs/any_model.py:nnx

``equinox`` (the default) compares HAT with BP, ``nnx`` compares GPM with BP. All have
ten classes per task and ten epochs of SGD with batch 64. About three minutes per row.
"""

from ml_collections import ConfigDict

from jaxcl.benchmark import base, finish, variant

ROWS = {"equinox": ("bp", "hat"), "nnx": ("bp", "gpm")}
METHODS = {"gpm": {"threshold": 0.995}, "hat": {"strength": 0.25}}


def get_config(argument: str = "") -> ConfigDict:
    """Argument: a row, a framework, or both with a comma between."""
    row, chosen = variant(argument, ROWS)
    framework = chosen or "equinox"
    config = base(f"any_model_{framework}")
    config.rows = ROWS[framework]
    config.data.update(
        dataset="cifar100",
        stream="split",
        num_tasks=2,
        classes_per_task=10,
        valid_fraction=0.05,
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    )
    config.model.update(name=f"jaxcl.nn.cnn_{framework}:CNN")
    config.optimizer.lr = 0.05
    config.train.update(epochs=10, batch_size=64)
    return finish(config, row, METHODS)
