"""A row's own settings hold in every benchmark, whatever the benchmark sets."""

from pathlib import Path

import pytest

from experiments.config import problem
from jaxcl.benchmark import load
from jaxcl.training.observation import strategy_of
from jaxcl.training.problem import setup_of

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
VARIANTS = ("", "wide", "half", "class", "toy", "fast", "task", "domain", "online")


def configs(path, row):
    """The file's configs of a row, one per variant that it has."""
    for variant in VARIANTS:
        try:
            yield load(path).get_config(",".join(filter(None, (row, variant))))
        except ValueError as error:
            assert "no variant" in str(error) or variant == ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_bp_star_keeps_the_best_validation_accuracy(path):
    found = list(configs(path, "bp_star"))
    assert found
    for config in found:
        assert (config.train.select, config.train.select_metric) == ("best", "accuracy")


@pytest.mark.parametrize("name", ["split_cifar100", "permuted_mnist"])
def test_hat_keeps_the_least_validation_loss_where_its_paper_does(name):
    path = next(p for p in CONFIGS if p.stem == name)
    variant = "hat,wide" if name == "permuted_mnist" else "hat"
    train = load(path).get_config(variant).train
    assert (train.select, train.select_metric) == ("best", "loss")
    assert train.patience_metric == "loss"


@pytest.mark.parametrize("row", ["gpm", "owm"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_setting_per_layer_has_as_many_entries_as_layers(path, row, tfds_dir):
    """In every variant: whether the head is among the layers depends on the tasks."""
    for config in configs(path, row):
        if row == "gpm" and config.method.threshold is None:
            continue  # a benchmark without GPM
        config.seeds = (0,)
        made = problem(config)
        assert strategy_of(made, setup_of(made))
