"""Networks whose layers are not what they seem: nothing is taken for a plain layer.

Fisher against a pass per example, and heads under a frozen extractor with and without
features that are computed ahead.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_per_example import compare

import jaxcl
from jaxcl.nn import equinox as of_equinox
from jaxcl.nn import nnx as of_nnx
from jaxcl.nn.capture import apply_fn, init_fn
from jaxcl.strategies import frozen, gpm

B, T, RNG = 6, 6, np.random.default_rng(0)  # as many steps as examples


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = draw(B, T, 5)
NET = {"w": draw(5, 7), "k": draw(7, 4)}


def time_major(net, x):
    h = jnp.tanh(jaxcl.nn.dense(x.swapaxes(0, 1), net["w"], name="hidden"))
    return jaxcl.nn.dense(h.mean(0), net["k"], name="head")


def over_time(net, x):
    def at(x):
        return jnp.tanh(jaxcl.nn.dense(x, net["w"], name="hidden"))

    return jaxcl.nn.dense(jax.vmap(at, 1)(x).mean(0), net["k"], name="head")


def two_views(net, x):
    both = jnp.concatenate([x[:, 0], x[:, 1]])
    h = jnp.tanh(jaxcl.nn.dense(both, net["w"], name="hidden"))
    return jaxcl.nn.dense(h[: len(x)] * h[len(x) :], net["k"], name="head")


def prototypes(net, x):
    """A layer that reads no example, but parameters."""
    w = jnp.tanh(jaxcl.nn.dense(net["p"], net["w"], name="hidden"))
    return jaxcl.nn.dense(x[:, 0], net["k"], name="body") @ w.T


def two_parts(net, x):
    """A head with parameters of its own before its layer."""
    h = jnp.tanh(jaxcl.nn.dense(x.mean(1), net["w"], name="hidden"))
    return jaxcl.nn.dense(h * net["k"]["scale"], net["k"]["k"], name="head")


def bias_before(net, x):
    """A parameter named as the head layer's bias, but before that layer."""
    h = jnp.tanh(jaxcl.nn.dense(x.mean(1), net["w"], name="hidden"))
    head = net["k"]
    return jaxcl.nn.dense(h + head["bias"], head["kernel"], name="head")


def flat_head(net, x):
    """The head reads [T·B, D], step after step."""
    h = jnp.tanh(jaxcl.nn.dense(x, net["w"], name="hidden"))
    flat = h.swapaxes(0, 1).reshape(-1, h.shape[-1])
    return jaxcl.nn.dense(flat, net["k"], name="head").reshape(T, len(x), -1).mean(0)


def tripled_bias(net, x):
    h = jaxcl.nn.dense(x.mean(1), net["w"], 3 * net["bias"], name="hidden")
    return jaxcl.nn.dense(jnp.tanh(h), net["k"], name="head")


FUNCTIONS = {
    time_major: NET,
    over_time: NET,
    two_views: NET,
    prototypes: {"p": draw(4, 5), "w": draw(5, 7), "k": draw(5, 7)},
    two_parts: {"w": draw(5, 7), "k": {"scale": 1 + draw(7), "k": draw(7, 4)}},
    bias_before: {"w": draw(5, 7), "k": {"bias": draw(7), "kernel": draw(7, 4)}},
    flat_head: NET,
    tripled_bias: NET | {"bias": draw(7)},
}


def setup_of(forward, net):
    given = dict(num_outputs=4, num_tasks=2, heads=(("k",),), scenario="task")
    return jaxcl.setup_for(forward, X, net=net, **given)


@pytest.mark.parametrize("forward", FUNCTIONS, ids=lambda f: f.__name__)
def test_sums_over_examples(forward):
    net = FUNCTIONS[forward]
    compare(setup_of(forward, net), net, {}, X, jnp.square)


@pytest.mark.parametrize("forward", FUNCTIONS, ids=lambda f: f.__name__)
def test_heads_under_a_frozen_extractor(forward):
    net = FUNCTIONS[forward]
    same_heads(setup_of(forward, net), net, {}, X)


def same_heads(setup, net, state, x):
    method, y = frozen(setup), jnp.arange(B) % 2 + 2
    params = jaxcl.init_params(method, jax.random.key(2), net)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
    data, of = jaxcl.array_data(x, y, 1), dict(task=1, model_state=state)
    opt_state = tx.init(params)
    cache = jaxcl.before_task(method, params, opt_state, data, **of)
    loss = jaxcl.transform_loss(method, setup)

    def trained(cache):
        ctx = jaxcl.context(x, y, index=jnp.arange(B), cache=cache, **of)
        run = jax.jit(jax.grad(loss, has_aux=True))
        return run(params, opt_state.strategy, ctx)[0].net

    ready, whole = trained(cache), trained(())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ready, whole)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole)) > 1e-3


# --- modules --------------------------------------------------------------------------


class Mirrored(nn.Module):
    """Evaluation is over an image and its mirror image; training is not."""

    @nn.compact
    def __call__(self, x, task, train):
        hidden, head = nn.Dense(7, name="hidden"), nn.Dense(4, name="head")

        def one(x):
            return head(nn.tanh(hidden(x)))

        return one(x) if train else (one(x) + one(x[:, ::-1])) / 2


class Standardised(nn.Dense):
    def param(self, name, *args, **kwargs):
        found = super().param(name, *args, **kwargs)
        return (found - found.mean(0)) / found.std(0) if name == "kernel" else found


class WithStandardised(nn.Module):
    @nn.compact
    def __call__(self, x, task, train):
        h = nn.tanh(Standardised(7, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(4, name="head")(h)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x, task, train):
        mask = jnp.triu(jnp.ones((3, 3)))[..., None, None] * jnp.ones((3, 3, 1, 4))
        h = nn.Conv(4, (3, 3), mask=mask, name="conv")(x[..., None])
        return nn.Dense(4, name="head")(nn.tanh(h).mean((1, 2)))


@pytest.mark.parametrize(
    "model, x, refused",
    [
        (Mirrored(), X[:, 0], {}),
        (
            WithStandardised(),
            X,
            {"hidden": "its class Standardised has a param of its own"},
        ),
        (Masked(), X, {"conv": "its mask is not the usual one"}),
    ],
    ids=["mirrored", "standardised", "masked"],
)
def test_linen(model, x, refused):
    of = dict(num_outputs=4, num_tasks=2, scenario="task")
    setup = jaxcl.setup_for_linen(model, x, heads=(("head",),), **of)
    assert {la.name: la.refusal for la in setup.layers if la.refusal} == refused
    net, state = init_fn(model, x)(jax.random.key(0))
    compare(setup, net, state, x, jnp.square)
    same_heads(setup, net, state, x)
    zero, key = jnp.zeros(B, jnp.int32), jax.random.key(0)
    ours = apply_fn(model)(net, state, x, zero, key, False).logits
    plain = model.apply({"params": net}, x, zero, False)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
    if refused:
        with pytest.raises(ValueError, match="gpm cannot treat layer"):
            gpm(setup, threshold=0.9)


class Doubled(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x)


class OfEquinox(eqx.Module):
    hidden: Doubled
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(jnp.tanh(self.hidden(x)))


class DoubledNNX(nnx.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class OfNNX(nnx.Module):
    def __init__(self, rngs):
        self.hidden = DoubledNNX(5, 7, rngs=rngs)
        self.head = nnx.Linear(7, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.hidden(x)))


@pytest.mark.parametrize("framework", ["equinox", "nnx"])
def test_a_subclass_with_a_call_of_its_own_runs_as_it_is(framework):
    x, key = X[:, 0], jax.random.key(0)
    given = dict(num_outputs=4, num_tasks=2, heads=(("head",),), scenario="task")
    if framework == "equinox":
        model = OfEquinox(Doubled(5, 7, key=key), eqx.nn.Linear(7, 4, key=key))
        net, state = of_equinox.split(model), {}
        setup, plain = jaxcl.setup_for_equinox(model, x, **given), jax.vmap(model)(x)
    else:
        model = OfNNX(nnx.Rngs(0))
        net, state = of_nnx.split(model)
        setup, plain = jaxcl.setup_for_nnx(model, x, **given), model(x)
    assert [la.name for la in setup.layers if la.refusal] == ["hidden"]
    out = setup.apply_fn(net, state, x, jnp.zeros(B, jnp.int32), key, False)
    np.testing.assert_allclose(out.logits, plain, rtol=1e-5, atol=1e-6)
    compare(setup, net, state, x, jnp.square)


def test_a_network_that_mixes_examples_may_say_so():
    def forward(net, x):
        h = jnp.tanh(jaxcl.nn.dense(x[:, 0], net["w"], name="hidden"))
        return jaxcl.nn.dense(h - h.mean(0), net["k"], name="head")

    given = dict(num_outputs=4, num_tasks=2, heads=(("k",),), scenario="task")
    setup = jaxcl.setup_for(forward, X, net=NET, mixes_examples=True, **given)
    same_heads(setup, NET, {}, X)
    method = frozen(setup)
    params = jaxcl.init_params(method, jax.random.key(2), NET)
    data = jaxcl.array_data(X, jnp.arange(B) % 2 + 2, 1)
    of_task = dict(data=data, model_state={}, task=jnp.int32(1))
    assert method.before_task(params, (), **of_task) == ()


def test_an_index_that_is_not_of_the_task_is_named():
    net = FUNCTIONS[time_major]
    setup = setup_of(time_major, net)
    method, y = frozen(setup), jnp.arange(B) % 2 + 2
    params = jaxcl.init_params(method, jax.random.key(2), net)
    loss = jaxcl.transform_loss(method, setup)
    ctx = jaxcl.context(X, y, task=1, index=3 + jnp.arange(B), cache=jnp.ones((B, 7)))
    with pytest.raises(ValueError, match=r"index must lie in \[0, 6\), got 6"):
        loss(params, (), ctx)
