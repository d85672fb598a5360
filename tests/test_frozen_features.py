"""BP**: computing a frozen extractor's features only once gives the same heads."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import after_each_task

import jaxcl
from jaxcl.nn import models
from jaxcl.nn.capture import init_fn
from jaxcl.ops.agreement import agreed
from jaxcl.strategies import _cache, er, frozen, hat, slda
from jaxcl.training.problem import make_setup

N, ROWS = 24, 8
NETS = {
    "plain": lambda k: models.MLP((12,), k),
    "mlp": lambda k: models.MLP((12,), k, norm="batch", dropout=0.5),
    "residual": lambda k: models.ResNet18(k, channels=2, norm="batch"),
    "per_task": lambda k: models.MLP((12,), k, norm="batch_per_task", num_tasks=3),
}


@pytest.fixture
def parts(problem):
    """Setup, and network and statistics after a first task; a second task's data."""

    def build(net):
        p = problem(model=NETS[net])
        setup = make_setup(p.model, p.stream, ROWS)
        net, statistics = init_fn(p.model, setup.example)(jax.random.key(0))
        x = 2 + jax.random.normal(jax.random.key(1), (N, *setup.example.shape[1:]))
        return setup, net, statistics, x, jnp.arange(N) % 2 + 2

    return build


def prepared(method, setup, net, statistics, x, y, task=1):
    params = jaxcl.init_params(method, jax.random.key(2), net)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1, 0.9), setup)
    opt_state = tx.init(params)
    data = jaxcl.array_data(x, y, task)
    given = dict(task=task, model_state=statistics)
    cache = jaxcl.before_task(method, params, opt_state, data, **given)
    return params, opt_state, tx, cache


def trained(method, parts, cached, task=1, poisoned=False):
    """The network after six steps, with or without features computed beforehand."""
    setup, net, statistics, x, y = parts
    params, opt_state, tx, cache = prepared(method, setup, net, statistics, x, y, task)
    if poisoned:
        body = {k: v for k, v in net.items() if k != "head"}
        body = jax.tree.map(lambda leaf: leaf * jnp.nan, body)
        params = params._replace(net=body | {"head": net["head"]})
    loss = jaxcl.transform_loss(method, setup)

    @jax.jit
    def step(params, opt_state, i):
        index = (i * ROWS + jnp.arange(ROWS)) % N
        ctx = jaxcl.context(
            *(x[index], y[index]),
            **dict(task=task, step=i, index=index, model_state=statistics),
            **dict(epoch=0, epoch_progress=0.0),
            cache=cache if cached else (),
        )
        g, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, opt_state = tx.update(g, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, u), opt_state

    for i in range(6):
        params, opt_state = step(params, opt_state, jnp.int32(i))
    return params.net


@pytest.mark.parametrize("net", NETS)
def test_heads_learn_what_they_learn_from_the_whole_network(parts, net):
    given = parts(net)
    method = frozen(given[0])
    whole, ready = (trained(method, given, cached) for cached in (False, True))
    chex.assert_trees_all_close(ready, whole, rtol=1e-5, atol=1e-6)
    assert np.abs(whole["head"]["kernel"] - given[1]["head"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("epochs, task, reads", [(None, 1, 1), (0, 0, 1), (2, 0, 0)])
def test_a_step_reads_nothing_but_the_head(parts, epochs, task, reads):
    """If the extractor stays frozen, training works even without its weights."""
    setup, net, statistics, x, y = parts("mlp")
    given = setup, net, statistics, x, y - 2 * (task == 0)
    method = frozen(setup, epochs=epochs)
    head = trained(method, given, True, task, poisoned=True)["head"]
    assert bool(np.isfinite(head["kernel"]).all()) == bool(reads)
    assert (head["kernel"] != net["head"]["kernel"]).any()


def test_the_first_task_computes_none(parts):
    setup, net, statistics, x, y = parts("mlp")
    first = prepared(frozen(setup), setup, net, statistics, x, y - 2, 0)[-1]
    assert first.shape == (N, 12) and not first.any()


@pytest.mark.parametrize("net", ["mlp", "residual"])
def test_features_are_the_first_tasks_in_evaluation(parts, net):
    setup, net, statistics, x, y = parts(net)
    cache = prepared(frozen(setup), setup, net, statistics, x, y)[-1]
    first = jnp.zeros(N, jnp.int32)
    out = setup.apply_fn(net, statistics, x, first, jax.random.key(3), False)
    np.testing.assert_allclose(cache, out.taps["head"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "chained, reads",
    [
        (lambda s: (frozen(s), slda(s)), True),
        (lambda s: (frozen(s), er(s, capacity=8, batch_size=4)), False),
        (lambda s: (frozen(s), hat(s)), False),
        (lambda s: (hat(s), frozen(s)), False),
    ],
    ids=["slda", "er", "hat_after", "hat_before"],
)
def test_in_a_chain(parts, chained, reads):
    """Gates and replay change the head's input, so a step computes the network."""
    given = parts("plain")
    method = jaxcl.chain(*chained(given[0]))
    whole, ready = (trained(method, given, cached) for cached in (False, True))
    chex.assert_trees_all_close(ready, whole, rtol=1e-5, atol=1e-6)
    lost = trained(method, given, True, poisoned=True)["head"]["kernel"]
    assert bool(np.isfinite(lost).all()) == reads


def test_an_example_that_is_not_of_the_task_is_computed(parts):
    setup, net, statistics, x, y = parts("mlp")
    method = frozen(setup)
    params, opt_state, _, cache = prepared(method, setup, net, statistics, x, y)
    loss = jaxcl.transform_loss(method, setup)

    def logits(index, cache):
        ctx = jaxcl.context(x[:ROWS] + 1, y[:ROWS], task=1, model_state=statistics)
        ctx = ctx._replace(batch=ctx.batch._replace(index=index), cache=cache)
        return jax.jit(loss)(params, opt_state.strategy, ctx)[1].logits

    mixed = jnp.arange(ROWS).at[3].set(-1)
    anew = logits(mixed, ())
    np.testing.assert_allclose(logits(mixed, cache), anew, rtol=1e-5, atol=1e-6)
    assert np.abs(logits(jnp.arange(ROWS), cache) - anew).max() > 1e-2


def test_seeds_side_by_side_agree_on_a_branch():
    """Under vmap a condition that may differ between seeds would compute both sides."""

    def f(x):
        sure = agreed((x > 0).all())
        return jax.lax.cond(sure, lambda x: x, lambda x: jnp.sin(x), x)

    xs = jnp.stack([jnp.ones(3), jnp.ones(3)])
    program = str(jax.make_jaxpr(jax.vmap(jax.vmap(f)))(xs[None]))
    assert "cond" in program and "select_n" not in program
    np.testing.assert_array_equal(jax.vmap(f)(xs), xs)
    xs = xs.at[1, 0].set(-1)
    np.testing.assert_array_equal(jax.vmap(f)(xs), jnp.sin(xs))
    gradient = jax.grad(lambda x: jax.vmap(f)(x).sum())(xs)
    np.testing.assert_allclose(gradient, jnp.cos(xs), rtol=1e-6)


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
def test_runs_end_with_the_same_heads(problem, monkeypatch, seed_mode):
    """In the compiled loop, over three tasks, with each way of laying out seeds."""

    def run():
        of = problem("frozen", model=NETS["mlp"], seed_mode=seed_mode)
        return [state.params.net for state in after_each_task(of)]

    ready = run()
    monkeypatch.setattr(_cache, "CACHE_LIMIT", 0)
    chex.assert_trees_all_close(ready, run(), rtol=1e-5, atol=1e-6)
