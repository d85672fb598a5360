"""Sums over examples from one backward pass, compared with a pass for each example."""

import flax.linen as nn
import four
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl.nn import layers, models
from jaxcl.nn.capture import init_fn
from jaxcl.ops.trees import leaf_names
from jaxcl.strategies import hat
from jaxcl.strategies._per_example import make_pass
from jaxcl.training.problem import make_setup

B, KEY = 6, jax.random.key(0)
WEIGHT = jnp.array([1.0, 0.5, 0.0, 2.0, 1.0, 0.25])


def expected(apply_fn, net, state, x, cotangents, h):
    """Σ_b weight_b h(g_b), with each g_b computed from one example alone."""

    def scalar(net, x, cotangent):
        task = jnp.zeros(1, jnp.int32)
        out = apply_fn(net, state, x[None], task, KEY, False)
        return (out.logits[0].astype(jnp.float32) * cotangent).sum()

    gradient = jax.jit(jax.grad(scalar))
    total = jax.tree.map(lambda a: np.zeros(a.shape), net)
    for b in range(B):
        g = gradient(net, x[b], cotangents[b])
        own = jax.tree.map(lambda a, w=WEIGHT[b]: w * h(np.asarray(a, np.float64)), g)
        total = jax.tree.map(np.add, total, own)
    return total


def compare(setup, net, state, x, h, rtol=2e-5, apply_fn=None):
    apply_fn = apply_fn or setup.apply_fn
    cotangents = jax.random.normal(jax.random.key(1), (B, setup.logit_mask.shape[1]))
    zero = jnp.zeros(B, jnp.int32)
    batch = jaxcl.Batch(x, zero, zero, WEIGHT, zero)

    @jax.jit
    def run(net):
        made = make_pass(setup, apply_fn, net, state, KEY, h)(batch)
        return made.logits, made.sums(cotangents, WEIGHT)

    logits, got = run(net)
    in_float64 = np.square if h is jnp.square else np.abs
    want = expected(apply_fn, net, state, x, cotangents, in_float64)
    plain = apply_fn(net, state, x, zero, KEY, False).logits
    np.testing.assert_allclose(logits, plain.astype(jnp.float32), rtol=rtol, atol=rtol)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert np.abs(b).max() > 1e-4 * largest or not b.any(), leaf_names(path)
        scale = max(np.abs(b).max(), 1e-6 * largest)
        np.testing.assert_allclose(a, b, atol=rtol * scale, err_msg=str(path))


class Normed(nn.Module):
    """A convolution, a normalisation with more than a few numbers, a head."""

    outputs: int

    @nn.compact
    def __call__(self, x, task, train):
        h = layers.Conv(6, (2, 2), name="conv")(x)
        h = nn.relu(nn.GroupNorm(2)(h)).reshape(len(x), -1)
        return layers.Dense(self.outputs, name="head")(h)


SIZES = pytest.mark.parametrize("h", [jnp.square, jnp.abs], ids=["square", "size"])


@pytest.mark.parametrize("framework", four.FRAMEWORKS)
@pytest.mark.parametrize("model", four.MODELS)
def test_any_framework(framework, model):
    """Both orientations of kernels and of images, and a residual sum."""
    odd = (four.FRAMEWORKS.index(framework) + list(four.MODELS).index(model)) % 2
    h = (jnp.square, jnp.abs)[odd]
    net = four.initial(model)
    made = four.framework(framework, model, net, B)
    rng = np.random.default_rng(0)
    x = made.inputs(rng.normal(size=(B, four.SIDE, four.SIDE, 1)).astype(np.float32))
    compare(made.setup, made.give(net), {}, jnp.asarray(x), h)


@SIZES
@pytest.mark.parametrize(
    "norm, model",
    [
        ("none", lambda k: models.MLP((7,), k, use_bias=False)),
        ("batch", lambda k: models.MLP((7,), k, norm="batch")),
        ("layer", lambda k: models.MLP((7,), k, norm="layer")),
        ("group", lambda k: Normed(k)),
        ("batch_current", lambda k: models.MLP((7,), k, norm="batch_current")),
    ],
    ids=["no_bias", "batch", "layer", "group", "mixes"],
)
def test_parameters_of_no_layer_are_summed_too(problem, norm, model, h):
    p = problem(model=model)
    setup = make_setup(p.model, p.stream, B)
    assert setup.mixes_examples == (norm == "batch_current")
    net, state = init_fn(p.model, setup.example)(jax.random.key(3))
    x = jax.random.normal(jax.random.key(4), setup.example.shape)
    if norm == "batch_current":
        return mixing(setup, net, state, x, h)
    compare(setup, net, state, x, h, rtol=1e-4)


def mixing(setup, net, state, x, h):
    """An example's logits depend on the others: each is differentiated in the batch.

    In float64: a float32 sum of squares of 30 is a few 1e-5 off on some machines.
    """
    with jax.enable_x64(True):
        net, x, weight = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (net, x, WEIGHT)
        )
        cotangents = jax.random.normal(
            jax.random.key(1), (B, setup.logit_mask.shape[1]), jnp.float64
        )
        zero = jnp.zeros(B, jnp.int32)
        made = make_pass(setup, setup.apply_fn, net, state, KEY, h)(
            jaxcl.Batch(x, zero, zero, weight, zero)
        )
        got = made.sums(cotangents, weight)

        def of(net, b):
            out = setup.apply_fn(net, state, x, zero, KEY, False)
            return (out.logits[b] * cotangents[b]).sum()

        total = jax.tree.map(jnp.zeros_like, net)
        for b in range(B):
            g = jax.grad(of)(net, b)
            own = jax.tree.map(lambda a, w=weight[b]: w * h(a), g)
            total = jax.tree.map(jnp.add, total, own)
        for ours, theirs in zip(*map(jax.tree.leaves, (got, total)), strict=True):
            assert theirs.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_network_behind_gates(problem):
    """At a task's end a chain passes on the network with HAT's gates."""
    p = problem(model=lambda k: models.MLP((7, 5), k))
    setup = make_setup(p.model, p.stream, B)
    net, state = init_fn(p.model, setup.example)(jax.random.key(3))
    method = hat(setup)
    params = jaxcl.init_params(method, jax.random.key(2), net)
    x = jax.random.normal(jax.random.key(4), setup.example.shape)
    begun = method.init(params)

    def gated(net, state, x, task, key, train):
        ctx = jaxcl.context(x, jnp.zeros(len(x), jnp.int32), task=0)
        f = method.forward(setup.apply_fn, begun, params.aux, ctx=ctx)
        return f(net, state, x, jnp.zeros_like(task), key, train)

    compare(setup, net, state, x, jnp.square, rtol=1e-4, apply_fn=gated)


def test_a_layer_that_is_not_met_is_summed_per_example():
    """Layers declared by hand, for a function that computes them itself."""
    net = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)}

    def by_hand(net, x):
        return x @ net["w"]

    def tagged(net, x):
        return jaxcl.nn.dense(x, net["w"], name="out")

    given = dict(num_outputs=4, num_tasks=2, heads=(("w",),))
    x = jax.random.normal(jax.random.key(4), (B, 5))
    declared = jaxcl.setup_for(tagged, x, net=net, **given).layers
    setup = jaxcl.setup_for(by_hand, x, net=net, layers=declared, **given)
    compare(setup, net, {}, x, jnp.square)


def test_a_bias_that_is_read_twice_is_refused_as_a_layers():
    net = {"a": jnp.ones((5, 4)), "b": jnp.ones(4), "c": jnp.ones((4, 4))}

    def again(net, x):
        h = jaxcl.nn.dense(x, net["a"], net["b"], name="first")
        return jaxcl.nn.dense(jnp.tanh(h) * net["b"], net["c"], name="out")

    def shared(net, x):
        h = jaxcl.nn.dense(x, net["a"], net["b"], name="first")
        return jaxcl.nn.dense(jnp.tanh(h), net["c"], net["b"], name="out")

    x = jax.random.normal(jax.random.key(4), (B, 5))
    for forward, by in [(again, "broadcast_in_dim"), (shared, "another layer")]:
        setup = jaxcl.setup_for(
            *(forward, x), net=net, num_outputs=4, num_tasks=2, heads=(("c",),)
        )
        assert setup.layers[0].refusal == f"its bias is read outside it too, by {by}"
        compare(setup, net, {}, x, jnp.square)
