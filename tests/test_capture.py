"""What capture finds in a model: layers and their inputs; and what it must refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.nn import capture, inspection, models


def test_taps_are_the_layers_inputs():
    model = models.MLP((5, 4), 3)
    example = jax.ShapeDtypeStruct((2, 6), jnp.float32)
    net, state = capture.init_fn(model, example)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 6))
    task = jnp.zeros(2, jnp.int32)
    out = capture.apply_fn(model)(net, state, x, task, jax.random.key(0), True)
    assert list(out.taps) == ["hidden_0", "hidden_1", "head"]
    np.testing.assert_array_equal(out.taps["hidden_0"], x)
    head = net["head"]
    np.testing.assert_allclose(
        out.taps["head"] @ head["kernel"] + head["bias"], out.logits, atol=1e-6
    )


def test_an_unused_tap_costs_nothing():
    model = models.MLP((5,), 3)
    example = jax.ShapeDtypeStruct((2, 6), jnp.float32)
    net, state = capture.init_fn(model, example)(jax.random.key(0))
    f = capture.apply_fn(model)
    x, task, key = jnp.ones((2, 6)), jnp.zeros(2, jnp.int32), jax.random.key(0)

    def bare(net):
        return model.apply({"params": net}, x, task, False)

    def tapped(net):
        return f(net, state, x, task, key, False).logits

    text = [jax.jit(g).lower(net).compile().as_text() for g in (bare, tapped)]
    operations = [t.count(" = ") for t in text]
    assert operations[0] == operations[1]


class Users(nn.Module):
    """A user's model, made of Flax's own layers."""

    trouble: str = ""

    @nn.compact
    def __call__(self, x, task, train):
        groups = 3 if self.trouble == "groups" else 1
        dilation = 2 if self.trouble == "dilated" else 1
        padding = "CIRCULAR" if self.trouble == "padding" else "SAME"
        x = nn.Conv(
            6,
            (3, 3),
            strides=2,
            padding=padding,
            feature_group_count=groups,
            kernel_dilation=dilation,
            name="first",
        )(x)
        x = x.reshape(x.shape[0], -1)
        shared = nn.Dense(x.shape[-1], name="shared")
        x = shared(x)
        if self.trouble == "twice":
            x = shared(x)
        return nn.Dense(4, use_bias=False, name="head")(x)


EXAMPLE = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def test_describes_a_users_model():
    first, shared, head = inspection.describe(Users(), EXAMPLE)
    assert first.kind == "conv" and first.path == ("first", "kernel")
    assert (first.window, first.strides, first.padding) == ((3, 3), (2, 2), "SAME")
    assert (first.d_in, first.n_out, first.bias) == (27, 6, True)
    assert (shared.d_in, head.d_in, head.bias) == (96, 96, False)
    assert first.feeds_on == () and shared.feeds_on == ("first",)  # by a reshape
    assert head.feeds_on == ("shared",) and not shared.repeats
    inspection.require_treatable((first, shared, head), "gpm")


@pytest.mark.parametrize(
    "trouble,what",
    [
        ("groups", "'first' .*in 3 groups"),
        ("dilated", "'first' .*dilated"),
        ("padding", "'first' .*'CIRCULAR'"),
        ("twice", "'shared' .*shared by 2 calls"),
    ],
)
def test_refuses_by_name(trouble, what):
    layers = inspection.describe(Users(trouble), EXAMPLE)
    with pytest.raises(ValueError, match=f"gpm cannot treat layer {what}"):
        inspection.require_treatable(layers, "gpm")


def test_wrong_wiring_is_refused():
    class Wired(Users):
        wiring = {"first": (), "head": ("first",)}

    with pytest.raises(ValueError, match="wiring of Wired"):
        inspection.describe(Wired(), EXAMPLE)
