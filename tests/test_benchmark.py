"""Configs: layers of presets, rows from other packages, every row of every file."""

import json
from pathlib import Path

import pytest

from configs import (
    digits,
    permuted_mnist,
    permuted_mnist_online,
    split_cifar100,
    split_mnist,
    split_tiny_imagenet,
)
from experiments import config as configs
from jaxcl import strategies
from jaxcl.benchmark import Variant, base, finish, required, variant
from jaxcl.strategies import FAMILIES, METHODS
from jaxcl.training.plan import Plan, validate_plan

FILES = (
    digits,
    permuted_mnist,
    permuted_mnist_online,
    split_cifar100,
    split_mnist,
    split_tiny_imagenet,
)
# Heads in closed form on untrained features take one step per task.
TRAINED = [r for r, m in METHODS.items() if m.presets.get("train.max_steps") != 1]
VARIANTS = [
    pytest.param(file, chosen, id=f"{file.__name__.split('.')[-1]}-{chosen or 'whole'}")
    for file in FILES
    for chosen in ("", *getattr(file, "VARIANTS", ()))
] + [pytest.param(split_mnist, chosen) for chosen in ("domain", "class")]


@pytest.mark.parametrize("file, chosen", VARIANTS)
@pytest.mark.parametrize("row", METHODS)
def test_every_config_has_every_row(file, chosen, row):
    config = file.get_config(f"{row},{chosen}".strip(","))
    assert config.row == row and config.name
    for name in required(strategies.factory(config.strategy)):
        assert config.method[name] is not None
    plan = Plan(lr=config.optimizer.lr, **config.train.to_dict())
    validate_plan(plan, has_validation=config.data.valid_fraction > 0)
    if row in ("bp", "bp_star"):
        assert config.train.select == {"bp": "last", "bp_star": "best"}[row]


def layered(row, chosen=None):
    config = base("layers")
    config.model.update(widths=(1,), norm="none")
    config.optimizer.lr = 0.1
    methods = {
        "gpm": {"threshold": 0.9, "optimizer.lr": 0.3, "model.widths": (3,)},
        "bp_star": {"train.select": "last"},
    }
    variants = {
        "small": Variant(
            {"name": "small", "optimizer.lr": 0.2, "model.norm": "batch"},
            methods={"gpm": {"model.widths": (4,), "threshold": 0.8}},
        )
    }
    return finish(config, row, methods, variants.get(chosen))


def test_the_more_specific_wins():
    plain, small = layered("ewc"), layered("ewc", "small")
    assert (plain.optimizer.lr, plain.model.norm, plain.name) == (0.1, "none", "layers")
    assert (small.optimizer.lr, small.model.norm, small.name) == (0.2, "batch", "small")
    plain, small = layered("gpm"), layered("gpm", "small")
    assert plain.optimizer.lr == small.optimizer.lr == 0.3  # the method's
    assert (plain.model.widths, small.model.widths) == ((3,), (4,))
    assert (plain.method.threshold, small.method.threshold) == (0.9, 0.8)
    assert small.model.norm == "batch"
    # A benchmark's setting of a method overrides the table's.
    assert layered("bp_star").train.select == "last"


def test_a_field_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no field 'optimizer.rate'"):
        finish(base("x"), "bp", {}, Variant({"optimizer.rate": 1.0}))
    with pytest.raises(ValueError, match="unknown method 'nosuch'; known: bp, bp_star"):
        finish(base("x"), "nosuch", {})


def test_a_variant_leaves_a_methods_own_setting():
    """The cases in which a variant used to override a setting of a method's paper."""
    wide = permuted_mnist.get_config("owm,wide")
    assert (wide.optimizer.lr, wide.train.batch_size) == (3.0, 100)
    assert wide.model.widths == (100,) and wide.train.epochs == 35
    assert permuted_mnist.get_config("hat,wide").model.widths == (2000, 2000)
    assert permuted_mnist.get_config("ewc,wide").model.widths == (2000, 2000)
    half = split_cifar100.get_config("gpm,half")
    assert half.optimizer.lr == 0.01 and half.model.norm == "batch_current"
    assert half.optimizer.momentum == 0.9 and half.train.patience is None
    toy = split_tiny_imagenet.get_config("gpm,toy")
    assert toy.optimizer.lr == 0.01 and toy.model.norm == "batch_current"
    # Settings that are meant for all methods still apply to all: a test stays short.
    for file in (permuted_mnist, split_cifar100, split_tiny_imagenet):
        assert {file.get_config(f"{r},fast").train.epochs for r in TRAINED} == {2}
    for row in TRAINED:
        assert split_cifar100.get_config(f"{row},half").train.epochs == 12
        assert split_tiny_imagenet.get_config(f"{row},toy").train.epochs == 20


def test_the_toy_network_differs_by_gpms_norm_alone():
    rows = [row for row in TRAINED if row != "linear"]  # a network of its own
    made = {row: split_tiny_imagenet.get_config(f"{row},toy") for row in rows}
    made["gpm"].model.norm = "none"
    assert len({config.model.to_json() for config in made.values()}) == 1
    assert made["bp"].model.width == 0.125 and made["bp"].data.num_tasks == 10
    assert {config.train.patience for config in made.values()} == {None}


RECORDED = Path(__file__).parents[1] / "experiments" / "results"


@pytest.mark.parametrize(
    "file, variant, folder",
    [(digits, "", "digits"), (permuted_mnist, "", "permuted_mnist")]
    + [(permuted_mnist_online, "", "permuted_mnist_online")]
    + [(split_mnist, "class", "split_mnist_class_heads")]
    + [
        (split_mnist, v, f"split_mnist_{v}")
        for v in ("task", "domain", "class", "online")
    ],
)
def test_a_recorded_run_is_still_what_its_config_says(file, variant, folder):
    """Fields that existed when the run was recorded still have the same values."""
    runs = [run for run in (RECORDED / folder).glob("*/config.json")]
    assert runs
    for run in runs:
        recorded = json.loads(run.read_text())
        argument = ",".join(filter(None, [recorded["row"], variant]))
        now = json.loads(file.get_config(argument).to_json_best_effort())
        for free in ("rows", "seed_mode", "checkpoint_every"):
            recorded.pop(free, None)
        assert _within(recorded, now) == []


def _within(recorded, now, path=""):
    if isinstance(recorded, dict):
        return [
            fault
            for name, value in recorded.items()
            for fault in _within(value, now.get(name), f"{path}.{name}")
        ]
    return [] if recorded == now else [(path, recorded, now)]


def test_the_table_is_whole():
    assert {method.family for method in METHODS.values()} <= set(FAMILIES)
    assert all(method.row == row for row, method in METHODS.items())
    labels = [method.label for method in METHODS.values()]
    assert len(set(labels)) == len(labels)
    for method in METHODS.values():
        name = strategies.strategy_name(method)
        assert strategies.factory(name) is method.factory
        assert strategies.method(strategies.row_of(name)).factory is method.factory
    with pytest.raises(ValueError, match="unknown method 'nosuch'; known: bp"):
        strategies.method("nosuch")


def test_a_row_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "far_away.py").write_text(
        "def l2(setup, *, strength, scale: float, where=None, steps=3): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row, chosen = variant("small,far_away:l2", ("small",))
    assert (row, chosen) == ("far_away:l2", "small")
    config = finish(base("x"), row, {})
    assert (config.row, config.strategy) == ("far_away:l2", "far_away:l2")
    expected = {"strength": None, "scale": None, "where": None, "steps": 3}
    assert config.method.to_dict() == expected
    for value in (1.0, "all", (1, 2)):  # whatever a literal may be
        config.method.strength = config.method.where = value
    config.method.scale = 2.0
    with pytest.raises(TypeError):
        config.method.scale = "large"
    assert configs.method_of(config).label == "l2"
    assert configs.folder(config.row) == "far_away.l2"
    with pytest.raises(ValueError, match="'far_away:l3' cannot be imported"):
        finish(base("x"), "far_away:l3", {})


def test_a_required_setting_has_to_be_given():
    config = finish(base("x"), "ewc", {})
    with pytest.raises(ValueError, match="'ewc' needs a value for strength: --config"):
        configs.problem(config)


def test_a_row_under_another_methods_name_is_refused():
    config = digits.get_config("bp")
    config.strategy = "frozen"
    with pytest.raises(ValueError, match="row 'bp' is not strategy 'frozen'"):
        configs.problem(config)
    config.row = ""
    assert configs.method_of(config).row == "bp_star_star"


def test_the_config_in_effect_is_every_field():
    config = digits.get_config("ewc")
    first, *lines = configs.in_effect(config).splitlines()
    assert first == "# digits, ewc"
    assert "optimizer.clip = 10.0" in lines and "method.strength = 100.0" in lines
    assert "data.class_order = 'fixed'" in lines and "train.patience = None" in lines


@pytest.mark.parametrize("row", ["linear", "raw_slda"])
def test_another_network_has_the_fields_that_every_network_has(row):
    config = digits.get_config(row)
    assert config.model.to_dict() == {
        "name": "linear",
        "dtype": "float32",
        "head": "head",
    }
    assert configs.problem(config).model.num_outputs == 10
