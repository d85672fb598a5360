"""Models named on the command line: shipped ones, and Linen, NNX, Equinox classes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, split_cifar100
from experiments.config import in_effect, replace_model
from experiments.runs.arguments import written_out
from jaxcl.nn.building import Built, build_model
from jaxcl.nn.models import AlexNet, ResNet18
from jaxcl.strategies import make
from jaxcl.testing import small_problem
from jaxcl.training import protocol
from jaxcl.training.describe import hash_of
from jaxcl.training.fingerprint import fingerprint
from jaxcl.training.problem import init_of, setup_of, validate
from tests import own_models

NAMES = ("LinenNet", "NNXNet", "EquinoxNet")
SHAPE = (4, 4, 1)


def build(name, fields=(), **options):
    options = dict(num_outputs=6, input_shape=SHAPE, num_tasks=3) | options
    return build_model(name, dict(fields), **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_knows_its_models_file(name):
    """An edited model is told where a run goes on, as an edited method is."""
    problem = small_problem(
        lambda setup: make("ewc", setup, {"strength": 1.0}),
        model=lambda outputs: build(f"tests.own_models:{name}", num_outputs=outputs),
    )
    mine = fingerprint(problem, {}).versions["file of tests.own_models"]
    assert mine == hash_of(Path(own_models.__file__).read_bytes())[:16]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_any_framework_trains_by_its_class(name):
    problem = small_problem(
        lambda setup: make("gpm", setup, {"threshold": 0.9}),
        seeds=(0, 1),
        model=lambda outputs: build(f"tests.own_models:{name}", num_outputs=outputs),
        num_tasks=2,
        plan={"epochs": 1},
    )
    validate(problem)
    setup = setup_of(problem)
    assert len(setup.layers) == 3 and setup.layers[-1].d_in == 12
    net = [init_of(problem)(jax.random.key(k))[0] for k in (0, 1, 0)]
    first, second, again = (jax.tree.leaves(n) for n in net)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    *_, last = protocol.run(problem)
    assert last.status == ("ok", "ok") and np.isfinite(last.accuracy[:, -1]).all()
    assert last.accuracy[:, -1].mean() > last.baseline.mean()


@pytest.mark.parametrize(
    "name",
    [f"tests.own_models:{name}" for name in NAMES[1:]]
    + ["jaxcl.nn.cnn_nnx:CNN", "jaxcl.nn.cnn_equinox:CNN"],
)
def test_what_is_trained_is_the_model_itself(name):
    shape = (5, 4, 3)  # height, width and channels can be told apart
    built = build(name, {"width": 7}, input_shape=shape)
    assert isinstance(built, Built)
    key = jax.random.key(3)
    net, state = built.init(key)
    x = jax.random.normal(jax.random.key(4), (2, *shape))
    out = built.apply_fn()(net, state, x, jnp.zeros(2, int), key, False)
    model = built.model(key)
    if built.is_nnx:
        model.eval()
        expected = model(x)
    else:
        expected = jax.vmap(model)(x.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(out.logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "name,fields,what",
    [
        ("resnet81", {}, "unknown model 'resnet81'; known: mlp, linear, alexnet, resn"),
        ("mlp", {"widths": (3,), "witdh": 2}, "has no field witdh; it has dropout"),
        ("mlp", {}, r"needs a value for widths: --config.model.widths=VALUE"),
        ("tests.own_models:NNXNet", {"depth": 3}, "has no field depth; it has width"),
        ("tests.own_models:NoOutputs", {"width": 3}, "has to take num_outputs"),
        ("tests.own_models:Missing", {}, "model .* cannot be imported"),
        ("no_such_module:Net", {}, "model .* cannot be imported"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(name, fields, what):
    with pytest.raises(ValueError, match=what) as error:
        build(name, fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model,what",
    [
        (
            lambda k: AlexNet(k, width=0.1),
            r"AlexNet, inputs \[4, 4, 1\]: a window of 2",
        ),
        (own_models.LargeWindow, r"LargeWindow, inputs \[4, 4, 1\]: "),
    ],
)
def test_an_image_too_small_for_a_network_is_one_line(model, what):
    with pytest.raises(ValueError, match=what) as error:
        validate(small_problem(model=model))
    assert "\n" not in str(error.value)


def test_the_smallest_image_that_alexnet_takes():
    """19 → 16 → 8 → 6 → 3 → 2 → 1."""
    for side in (18, 19):
        example = jnp.zeros((1, side, side, 1))

        def init(x=example):
            return AlexNet(2, width=0.1).init(jax.random.key(0), x, None, False)

        if side == 19:
            jax.eval_shape(init)
        else:
            with pytest.raises(ValueError, match="does not fit into the 1 × 1"):
                jax.eval_shape(init)
    jax.eval_shape(
        lambda: ResNet18(2).init(
            jax.random.key(0), jnp.zeros((1, 1, 1, 1)), None, False
        )
    )


# --- from the command line ------------------------------------------------------------


def test_another_model_takes_the_first_ones_fields_with_it():
    config = split_cifar100.get_config("ewc")
    config.model.dtype = "bfloat16"
    replace_model(config, ["name=resnet18", "channels=8", "norm=none"])
    assert config.model.to_dict() == {
        "name": "resnet18",
        "head": "head",
        "dtype": "bfloat16",
        "channels": 8,
        "norm": "none",
        "num_tasks": None,
    }
    assert "model.channels = 8" in in_effect(config)
    replace_model(config, ["name=tests.own_models:EquinoxNet", "head=head", "width=9"])
    assert config.model.width == 9 and "channels" not in config.model


def test_the_same_model_keeps_its_fields():
    config = digits.get_config("bp")
    replace_model(config, ["name=mlp", "widths=(5,)"])
    assert config.model.widths == (5,) and config.model.dropout == 0.0
    replace_model(config, [])
    assert config.model.widths == (5,)


@pytest.mark.parametrize(
    "given,what",
    [
        (
            ["name=resnet18", "width=3"],
            "'resnet18' has no such field; it has channels,",
        ),
        (["name=resnet18", "channels=many"], "--config.model.channels=many: "),
        (["name=nosuch"], "unknown model 'nosuch'"),
    ],
)
def test_a_field_that_another_model_does_not_have_is_named(given, what):
    with pytest.raises(ValueError, match=what):
        replace_model(digits.get_config("bp"), given)


@pytest.mark.parametrize(
    "words,model",
    [
        (["--config.model.widths=(3,)"], []),
        (["--config.model.name=resnet18"], ["--model=name=resnet18"]),
        (
            ["--config.model.channels=8", "-config.model.name", "resnet18"],
            ["--model=channels=8", "--model=name=resnet18"],
        ),
    ],
)
def test_a_command_line_that_names_a_model(words, model):
    got = written_out(["run", "--config=digits", *words, "--workdir=x"])
    assert [word for word in got if word.startswith("--model=")] == model
    assert "--workdir=x" in got
    if model:
        assert not [word for word in got if "config.model" in word]
