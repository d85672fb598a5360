"""BP**: after the first task heads train on the same features that tests use."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.nn import models
from jaxcl.nn.capture import init_fn
from jaxcl.strategies import er, ewc, frozen, gpm, lwf
from jaxcl.training.problem import make_setup

ROWS = 8


@pytest.fixture
def parts(problem):
    """Setup, and network and statistics after a first task; a batch of task 2."""

    def build(norm, scenario="task"):
        p = problem(
            model=lambda k: models.MLP((12,), k, norm=norm, dropout=0.5, num_tasks=3),
            scenario=scenario,
        )
        setup = make_setup(p.model, p.stream, ROWS)
        net, statistics = init_fn(p.model, setup.example)(jax.random.key(0))
        x = 2 + 3 * jax.random.normal(jax.random.key(1), (ROWS, 4, 4, 1))
        y = jnp.arange(ROWS) % 2
        for i in range(30):
            key = jax.random.key(i)
            first = jnp.zeros(ROWS, jnp.int32)
            out = setup.apply_fn(net, statistics, x + i % 3, first, key, True)
            statistics = out.model_state
        if scenario == "task":
            y = y + 2
        return setup, net, statistics, x - 1, y

    return build


def gradient(method, setup, net, statistics, x, y, task):
    params = jaxcl.init_params(method, jax.random.key(2), net)
    loss = jaxcl.transform_loss(method, setup)
    ctx = jaxcl.context(x, y, task=task, model_state=statistics)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, out), g = run(params, method.init(params), ctx)
    return value, out, g.net, ctx


@pytest.mark.parametrize("norm", ["batch", "batch_per_task", "batch_current"])
def test_a_head_is_trained_on_the_features_it_is_tested_on(parts, norm):
    setup, net, statistics, x, y = parts(norm)
    _, out, g, _ = gradient(frozen(setup), setup, net, statistics, x, y, 1)
    first = jnp.zeros(ROWS, jnp.int32)
    tested = setup.apply_fn(net, statistics, x, first, jax.random.key(9), False)
    # The gradient of the mean cross-entropy, by hand in float64.
    h = np.asarray(tested.taps["head"], np.float64)
    w, b = (np.asarray(net["head"][n], np.float64) for n in ("kernel", "bias"))
    z = (h @ w + b)[:, 2:4]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    d = (p - np.eye(2)[np.asarray(y) - 2]) / ROWS
    kernel, bias = np.zeros_like(w), np.zeros_like(b)
    kernel[:, 2:4], bias[2:4] = h.T @ d, d.sum(0)
    assert np.abs(kernel).max() > 1e-2
    np.testing.assert_allclose(g["head"]["kernel"], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(g["head"]["bias"], bias, rtol=1e-4, atol=1e-6)
    del g["head"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(g))
    # The extractor does not change, and later hooks read the head's actual input.
    chex.assert_trees_all_equal(out.model_state, statistics)
    for name, tap in tested.taps.items():
        np.testing.assert_allclose(out.taps[name], tap, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "batch_per_task"])
def test_the_first_task_is_plain_training(parts, norm):
    setup, net, statistics, x, y = parts(norm)
    ours = gradient(frozen(setup), setup, net, statistics, x, y - 2, 0)
    plain = gradient(jaxcl.strategy(), setup, net, statistics, x, y - 2, 0)
    for a, b in zip(
        jax.tree.leaves((ours[0], ours[1], ours[2])),
        jax.tree.leaves((plain[0], plain[1], plain[2])),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert ours[2]["hidden_0"]["kernel"].any()


def test_every_task_is_tested_with_the_first_ones_statistics(parts):
    setup, net, statistics, x, _ = parts("batch_per_task")
    method = frozen(setup)
    ctx = jaxcl.context(x, jnp.zeros(ROWS, int), task=2, model_state=statistics)
    f = method.forward(setup.apply_fn, (), {}, ctx=ctx)
    first = jnp.zeros(ROWS, jnp.int32)
    key = jax.random.key(0)
    expected = setup.apply_fn(net, statistics, x, first, key, False).logits
    got = f(net, statistics, x, first + 2, key, False).logits
    np.testing.assert_array_equal(got, expected)
    own = setup.apply_fn(net, statistics, x, first + 2, key, False).logits
    assert np.abs(own - expected).max() > 0.1


@pytest.mark.parametrize(
    "other",
    [
        lambda s: ewc(s, strength=1.0, samples=8),
        lambda s: gpm(s, threshold=0.9, samples=8),
        lambda s: er(s, capacity=8, batch_size=4),
        lambda s: lwf(s),
    ],
    ids=["ewc", "gpm", "er", "lwf"],
)
@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_it_chains_with_other_methods(parts, other, scenario):
    setup, net, statistics, x, y = parts("batch", scenario)
    method = jaxcl.chain(frozen(setup), other(setup))
    params = jaxcl.init_params(method, jax.random.key(2), net)
    loss = jaxcl.transform_loss(method, setup)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1, 0.9), setup)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, ctx):
        g, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, opt_state = tx.update(g, opt_state, params, ctx=ctx, out=out)
        new = method.model_state(
            out.model_state, opt_state.strategy, old=ctx.model_state, ctx=ctx
        )
        return optax.apply_updates(params, u), opt_state, new

    for task in range(2):
        labels = y + 2 * (task - 1) if scenario == "task" else y
        data = jaxcl.array_data(x, labels, task)
        cache = jaxcl.before_task(
            *(method, params, opt_state, data), task=task, model_state=statistics
        )
        opt_state = opt_state._replace(inner=tx.init(params).inner)
        before, old = params.net, statistics
        for i in range(3):
            ctx = jaxcl.context(
                x, labels, task=task, step=i, cache=cache, model_state=statistics
            )
            params, opt_state, statistics = step(params, opt_state, ctx)
        params, opt_state = jaxcl.after_task(
            method, params, opt_state, data, task=task, model_state=statistics
        )
    assert (params.net["head"]["kernel"] != before["head"]["kernel"]).any()
    rest = [{k: v for k, v in n.items() if k != "head"} for n in (params.net, before)]
    chex.assert_trees_all_equal(*rest)
    chex.assert_trees_all_equal(statistics, old)


@pytest.mark.parametrize("epochs, epoch, learns", [(0, 0, 0), (2, 1, 1), (2, 2, 0)])
def test_the_extractor_learns_for_the_first_epochs_of_the_first_task(
    parts, epochs, epoch, learns
):
    setup, net, statistics, x, y = parts("batch")
    method = frozen(setup, epochs=epochs)
    params = jaxcl.init_params(method, jax.random.key(2), net)
    loss = jaxcl.transform_loss(method, setup)
    decay = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))
    tx = jaxcl.transform_optimizer(method, decay, setup)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, ctx):
        g, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, opt_state = tx.update(g, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, u), out.model_state

    ctx = jaxcl.context(x, y - 2, task=0, epoch=epoch, model_state=statistics)
    new, running = step(params, opt_state, ctx)
    assert (new.net["head"]["kernel"] != net["head"]["kernel"]).any()
    moved = (new.net["hidden_0"]["kernel"] != net["hidden_0"]["kernel"]).any()
    assert moved == bool(learns)
    same = jax.tree.map(lambda a, b: (a == b).all(), running, statistics)
    assert all(jax.tree.leaves(same)) == (not learns)


def test_epochs_below_zero_are_refused(parts):
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        frozen(parts("none")[0], epochs=-1)
