"""A framework's own convolution, as this project computes it on a CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcl.nn import capture
from jaxcl.nn import nnx as nnx_adapter

KEY = jax.random.key(0)


def _own_convolution(model, shape=(2, 9, 8, 3)):
    """Whether a model's program has an XLA convolution; checks its logits too."""
    x = jax.random.normal(jax.random.key(1), shape)
    task = jnp.zeros(len(x), jnp.int32)
    if isinstance(model, nnx.Module):
        apply, (net, state) = nnx_adapter.apply_fn(model), nnx_adapter.split(model)
        expected = model(x)
    else:
        apply = capture.apply_fn(model)
        net, state = capture.init_fn(model, jax.ShapeDtypeStruct(x.shape, x.dtype))(KEY)
        expected = model.apply({"params": net}, x, task, False)

    def logits(net, x):
        return apply(net, state, x, task, KEY, True).logits

    np.testing.assert_allclose(logits(net, x), expected, atol=1e-5)
    return "conv_general_dilated" in str(jax.make_jaxpr(logits)(net, x))


def _nnx_net(**fields):
    return nnx.Sequential(
        nnx.Conv(3, 4, (3, 2), rngs=nnx.Rngs(0), **fields),
        lambda x: x.reshape(len(x), -1)[:, :30],
        nnx.Linear(30, 5, rngs=nnx.Rngs(1)),
    )


class _LinenNet(nn.Module):
    fields: dict

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.Conv(4, (3, 2), **self.fields)(x)
        return nn.Dense(5, name="head")(x.reshape(len(x), -1)[:, :30])


@pytest.mark.parametrize("net", [_nnx_net, lambda **fields: _LinenNet(fields)])
@pytest.mark.parametrize(
    "fields, own",
    [
        ({}, False),
        ({"strides": 2, "padding": "VALID", "use_bias": False}, False),
        ({"strides": (1, 2), "padding": 1}, False),
        ({"kernel_dilation": 2}, True),
        ({"padding": "CIRCULAR"}, True),
        ({"mask": jnp.arange(72).reshape(3, 2, 3, 4) % 2}, True),
    ],
)
def test_a_frameworks_convolution_is_fast_in_a_loop_on_a_cpu(net, fields, own):
    # XLA's own takes five to twelve times as long there.
    assert _own_convolution(net(**fields)) == own
