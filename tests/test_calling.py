"""What a Flax model's call is given beside its input, by names and by position."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxcl
from jaxcl.nn import calling, capture
from jaxcl.nn import nnx as from_nnx

X = jax.random.normal(jax.random.key(0), (64, 6))
TASK, KEY = jnp.arange(64) % 2, jax.random.key(1)


def of(signature, base=object):
    """A class whose call has a signature and returns what it was given."""
    words = [word.partition("=")[0].strip() for word in signature.split(",")]
    body = ", ".join(f"{name}={name}" for name in words if name.isidentifier())
    space = {}
    exec(f"def call(self, {signature}): return dict({body})", space)
    return type("Net", (base,), {"__call__": space["call"]})()


@pytest.mark.parametrize(
    "signature, given",
    [
        ("x", {}),
        ("x, task, train", {"task": "T", "train": True}),
        ("x, train, task", {"task": "T", "train": True}),
        ("x, task", {"task": "T"}),
        ("x, train", {"train": True}),
        ("x, train=False", {"train": True}),
        ("x, *, training", {"training": True}),
        ("x, is_training: bool = False", {}),
        ("x, deterministic", {"deterministic": False}),
        ("x, mask=None, deterministic=True", {"mask": None, "deterministic": False}),
        ("x, use_running_average=None", {"use_running_average": False}),
        ("x, mask=None", {"mask": None}),
        ("x, task_id, training", {"task_id": "T", "training": True}),
        ("x, is_train=False", {"is_train": True}),
        ("x, eval=True", {"eval": False}),
        ("x, enable_dropout=False", {"enable_dropout": True}),
        ("x, _, train", {"_": "T", "train": True}),
        ("x, _task, _train", {"_task": "T", "_train": True}),
        ("x, _, __", {"_": "T", "__": True}),
        # What nothing is known of keeps its default.
        ("x, a=None, b=None", {"a": None, "b": None}),
        ("x, scale=1.0, temperature=1.0", {"scale": 1.0, "temperature": 1.0}),
        (
            "x, mask=None, return_features=False, train=False",
            {"mask": None, "return_features": False, "train": True},
        ),
        ("x, is_train=False, rng=None", {"is_train": True, "rng": None}),
        ("x, task, mask=None, train=False", {"task": "T", "mask": None, "train": True}),
    ],
)
def test_what_a_call_is_given(signature, given):
    signature = signature.replace(": bool", "")
    if "is_training" in signature:
        given = {"is_training": True}
    model = of(signature)
    args, kwargs = calling.arguments(model, "Linen")("T", True)
    assert model("X", *args, **kwargs) == {"x": "X"} | given


@pytest.mark.parametrize(
    "signature, needs",
    [
        ("x, mask", "mask"),
        ("x, mask, train", "mask"),
        ("x, mask, deterministic", "mask"),
        ("x, mask, train, task", "mask"),
        ("x, train, mask", "mask"),
        ("x, a, b", "a, b"),
        ("x, task, mask, scale=1.0", "mask"),
        ("x, **kwargs", r"\*\*kwargs"),
        ("*args", r"\*args"),
        ("", "x"),
    ],
)
def test_an_argument_that_nothing_is_known_of_is_refused(signature, needs):
    with pytest.raises(ValueError, match=rf"by these names; it needs {needs}$"):
        calling.arguments(of(signature), "Linen")


def test_a_sequence_of_layers_is_given_its_input_alone():
    rngs = nnx.Rngs(0)
    layer = nnx.Linear(6, 4, rngs=rngs)
    for model in (nn.Sequential([nn.Dense(4)]), nnx.Sequential(layer)):
        assert calling.arguments(model, "a")("T", True) == ((), {})


class Task(nn.Module):
    @nn.compact
    def __call__(self, x, task, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8, name="a")(x)))
        return nn.Dense(4, name="head")(x)


class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return Task.__call__.__wrapped__(self, x, None, train)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic: bool):
        return Task.__call__.__wrapped__(self, x, None, not deterministic)


@pytest.mark.parametrize("model", [Train(), Deterministic()])
def test_a_linen_model_drops_units_in_training_alone(model):
    (net, state), (expected, _) = (
        capture.init_fn(m, jax.ShapeDtypeStruct(X.shape, X.dtype))(KEY)
        for m in (model, Task())
    )
    jax.tree.map(np.testing.assert_array_equal, net, expected)
    for train in (False, True):
        ours, full = (
            capture.apply_fn(m)(net, state, X, TASK, KEY, train).logits
            for m in (model, Task())
        )
        np.testing.assert_array_equal(ours, full)
    assert not np.array_equal(full, capture.apply_fn(model)(*parts(net), False).logits)


def parts(net):
    return net, {}, X, TASK, KEY


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_a_lifted_model_gets_its_mode_where_it_is_static(lift):
    """`static_argnums` counts by position: 3 is the mode, after self, x and task."""
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    lifted, plain = lift(Task, static_argnums=(3,))(), Task()
    net, _ = capture.init_fn(lifted, shape)(KEY)
    tested, trained = (
        capture.apply_fn(lifted)(*parts(net), train).logits for train in (False, True)
    )
    expected = capture.apply_fn(plain)(*parts(net), False).logits
    np.testing.assert_allclose(tested, expected, rtol=1e-6)
    assert not np.array_equal(trained, tested)  # Flax draws other keys inside


class Drops(nnx.Module):
    def __init__(self, rngs):
        self.head, self.rngs = nnx.Linear(6, 4, rngs=rngs), rngs

    def __call__(self, x, train=False):
        keep = jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape) if train else 1
        return self.head(x * keep)


def test_an_nnx_model_is_told_that_it_trains():
    model = Drops(nnx.Rngs(0, dropout=1))
    f, net = from_nnx.apply_fn(model), from_nnx.split(model)[0]
    trained, tested = (f(*parts(net), train).logits for train in (True, False))
    np.testing.assert_array_equal(tested, model(X))
    assert not np.array_equal(trained, tested)


def test_setup_for_linen_is_called_like_its_siblings():
    given = dict(num_outputs=4, num_tasks=2, scenario="task")
    setup = jaxcl.setup_for_linen(Train(), X, heads=(("head",),), **given)
    assert [layer.name for layer in setup.layers] == ["a", "head"]
    assert setup.logit_mask.astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"logits \[B, 6\], on inputs \[64, 6\] it"):
        jaxcl.setup_for_linen(
            *(Train(), X), heads=(("head",),), num_outputs=6, num_tasks=2
        )
    with pytest.raises(ValueError, match="'fc' matches no parameter"):
        jaxcl.setup_for_linen(Train(), X, heads=(("fc",),), **given)
