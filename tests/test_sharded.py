"""A data-parallel step under `jax.shard_map`, batch by batch on two devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import alone
from jax.sharding import PartitionSpec as P

import jaxcl
from jaxcl.ops.convolution import add_bias, convolve
from jaxcl.ops.depthwise import depthwise
from jaxcl.ops.pooling import max_pool
from jaxcl.strategies import ewc, finetune, gpm, hat, lwf

KEY = jax.random.key
X = jax.random.normal(KEY(0), (8, 6, 6, 2))
Y = jnp.arange(8) % 3
NET = {
    "conv": {"kernel": 0.3 * jax.random.normal(KEY(1), (3, 3, 2, 12))},
    "body": {"kernel": 0.3 * jax.random.normal(KEY(2), (48, 20)), "bias": jnp.ones(20)},
    "head": {"kernel": 0.3 * jax.random.normal(KEY(3), (20, 6)), "bias": jnp.zeros(6)},
}


def network(net, x):
    x = jaxcl.nn.conv(x, net["conv"]["kernel"], None, name="conv")
    x = max_pool(jax.nn.relu(x), 2).reshape(len(x), -1)
    x = jaxcl.nn.dense(x, net["body"]["kernel"], net["body"]["bias"], name="body")
    x = jnp.tanh(x)
    return jaxcl.nn.dense(x, net["head"]["kernel"], net["head"]["bias"], name="head")


def on_two(function):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    return partial(jax.shard_map, mesh=mesh)(
        function, in_specs=(P(), P("data"), P("data")), out_specs=P()
    )


@pytest.mark.parametrize(
    "make",
    [
        finetune,
        partial(ewc, strength=10.0),
        partial(gpm, threshold=0.9),
        partial(gpm, threshold=0.9, form="gradient"),
        lwf,
        hat,
    ],
    ids=["bp", "ewc", "gpm", "gpm_gradient", "lwf", "hat"],
)
def test_gradients_are_those_of_the_whole_batch(make):
    setup = jaxcl.setup_for(
        *(network, X),
        net=NET,
        num_outputs=6,
        num_tasks=2,
        heads=(("head",),),
        scenario="task",
    )
    method = make(setup)
    params = jaxcl.init_params(method, KEY(4), NET)
    loss, tx = alone(method, optax.sgd(0.1), setup)
    state = tx.init(params)
    data = jaxcl.array_data(X, Y)
    _, state = jaxcl.after_task(method, params, state, data, task=0)

    def gradient(params, x, y):
        ctx = jaxcl.context(x, y, task=1, epoch_progress=0.5)

        def mean(params):
            return loss(params, state.strategy, ctx)[0]

        return jax.grad(mean)(params)

    def parallel(params, x, y):
        # The gradient of a mean over devices of means.
        found = gradient(params, x, y)
        return jax.tree.map(lambda g: g / 2, found)

    whole = jax.jit(gradient)(params, X, Y + 3)
    shared = jax.jit(on_two(parallel))(params, X, Y + 3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
    "op, shape",
    [
        (partial(convolve, strides=(2, 2), padding="SAME"), (3, 3, 2, 5)),
        (add_bias, (2,)),
        (partial(depthwise, stride=1), (3, 3, 2)),
        (lambda x, w: max_pool(x * w), (2,)),
    ],
    ids=["convolve", "add_bias", "depthwise", "max_pool"],
)
def test_each_op_has_the_gradient_of_what_devices_share(op, shape):
    w = jax.random.normal(KEY(5), shape)

    def gradient(w, x, y):
        return jax.grad(lambda w: jnp.sum(op(x, w) ** 2))(w)

    whole = gradient(w, X, Y)
    np.testing.assert_allclose(on_two(gradient)(w, X, Y), whole, rtol=2e-5)
