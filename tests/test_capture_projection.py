"""The backward pass that projects a layer's input instead of its gradient."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.nn import capture, inspection, layers, models
from jaxcl.strategies import _projection as projection


class Mixed(nn.Module):
    """Flax's and this project's layers, with strides and both paddings."""

    bias: bool = True

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.relu(layers.Conv(5, (3, 2), (2, 1), "SAME", self.bias, name="ours")(x))
        x = nn.relu(
            nn.Conv(4, (2, 2), padding="VALID", use_bias=self.bias, name="lin")(x)
        )
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(7, use_bias=self.bias, name="dense")(x))
        return layers.Dense(3, self.bias, name="head")(x)


EXAMPLE = jax.ShapeDtypeStruct((4, 7, 6, 2), jnp.float32)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def problem(request):
    model = Mixed(request.param)
    net, state = jax.jit(capture.init_fn(model, EXAMPLE))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), EXAMPLE.shape)
    return model, inspection.describe(model, EXAMPLE), net, state, x


def gradient(f, net, state, x, train=True):
    def loss(net, x):
        out = f(net, state, x, jnp.zeros(len(x), int), jax.random.key(0), train)
        return jnp.sum(jnp.sin(out.logits) * jnp.arange(1.0, 4.0)), out

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(net, x)


def test_rows_times_the_kernel_are_the_layer(problem):
    model, layers, net, state, x = problem
    _, out = gradient(capture.apply_fn(model), net, state, x)[0]
    for layer in layers:
        p = net[layer.name]
        got = projection.rows(layer, out.taps[layer.name])
        assert got.shape == (len(x) * layer.positions, layer.d_in)
        y = got @ p["kernel"].reshape(layer.d_in, layer.n_out)
        if layer.kind == "conv":
            expected = jax.lax.conv_general_dilated(
                out.taps[layer.name],
                p["kernel"],
                layer.strides,
                layer.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ).reshape(-1, layer.n_out)
        else:
            expected = out.taps[layer.name] @ p["kernel"]
        np.testing.assert_allclose(y, expected, atol=2e-6)


def test_projecting_inputs_projects_kernel_gradients_and_nothing_else(problem):
    model, layers, net, state, x = problem
    plain = capture.apply_fn(model)
    m = {}
    for i, layer in enumerate(layers):
        u, _ = np.linalg.qr(np.random.default_rng(i).normal(size=(layer.d_in, 2)))
        m[layer.name] = jnp.asarray(u @ u.T, jnp.float32)
    f = projection.project_inputs(
        plain, layers, lambda layer, rows: rows - rows @ m[layer.name]
    )
    (value, out), (g, dx) = gradient(plain, net, state, x)
    (value2, out2), (g2, dx2) = jax.jit(lambda n, x: gradient(f, n, state, x))(net, x)
    np.testing.assert_allclose(value2, value, rtol=1e-6)
    np.testing.assert_allclose(dx2, dx, atol=1e-5)
    assert out2.taps.keys() == out.taps.keys() == {layer.name for layer in layers}
    for layer in layers:
        np.testing.assert_allclose(
            out2.taps[layer.name], out.taps[layer.name], atol=1e-6
        )
        old = np.asarray(g[layer.name]["kernel"]).reshape(layer.d_in, -1)
        new = np.asarray(g2[layer.name]["kernel"]).reshape(layer.d_in, -1)
        np.testing.assert_allclose(new, old - m[layer.name] @ old, atol=2e-5)
        assert np.abs(new - old).max() > 1e-2
        if layer.bias:
            np.testing.assert_allclose(
                g2[layer.name]["bias"], g[layer.name]["bias"], atol=1e-5
            )


def test_evaluation_and_other_layers_are_untouched(problem):
    model, layers, net, state, x = problem
    plain = capture.apply_fn(model)
    f = projection.project_inputs(plain, layers[:1], lambda layer, rows: 0 * rows)
    _, (g, _) = gradient(plain, net, state, x)
    _, (evaluated, _) = gradient(f, net, state, x, train=False)
    chex.assert_trees_all_equal(evaluated, g)
    _, (trained, _) = gradient(f, net, state, x)
    assert not trained["ours"]["kernel"].any()
    for name in ("lin", "dense", "head"):
        np.testing.assert_allclose(
            trained[name]["kernel"], g[name]["kernel"], atol=1e-5
        )


@pytest.mark.parametrize("gate_first", [True, False])
def test_it_nests_with_other_interceptors(problem, gate_first):
    """A gate on a layer's output acts, no matter which of the two was set up first."""
    model, layers, net, state, x = problem
    plain = capture.apply_fn(model)

    def gated(f):
        def double(call, args, kwargs, context):
            y = call(*args, **kwargs)
            return 2 * y if context.module.name == "dense" else y

        def apply(*args):
            with nn.intercept_methods(double):
                return f(*args)

        return apply

    def zeroed(f):
        return projection.project_inputs(f, layers, lambda layer, rows: 0 * rows)

    f = zeroed(gated(plain)) if gate_first else gated(zeroed(plain))
    (value, _), (g, _) = gradient(f, net, state, x)
    (expected, _), _ = gradient(gated(plain), net, state, x)
    (bare, _), _ = gradient(plain, net, state, x)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert abs(value - bare) > 1e-2
    assert not any(g[layer.name]["kernel"].any() for layer in layers)


@pytest.mark.parametrize(
    "model, shape, expected",
    [
        (models.MLP((3,), 2), (2, 4, 4, 1), {"hidden_0"}),
        (models.MLP((3,), 2, input_dropout=0.5), (2, 4, 4, 1), set()),
        (models.MLP((), 2), (2, 9), {"head"}),
        (models.AlexNet(2, width=0.05), (2, 32, 32, 3), {"conv_0"}),
    ],
)
def test_who_reads_the_input_as_it_is(model, shape, expected):
    layers = inspection.describe(model, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert {layer.name for layer in layers if layer.reads_input} == expected
