"""chain, transform_loss and transform_optimizer in a loop that is not the project's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.strategies import ewc, finetune, frozen

SETUP = jaxcl.setup_for(
    lambda w, x: jnp.tanh(x @ w["body"]) @ w["head"],
    jnp.zeros((8, 3)),
    num_outputs=4,
    num_tasks=2,
    heads=(("head",),),
)
NET = {
    "body": jax.random.normal(jax.random.key(0), (3, 5)),
    "head": jax.random.normal(jax.random.key(1), (5, 4)),
}
X = jax.random.normal(jax.random.key(2), (8, 3))
Y = jnp.arange(8) % 4


def train(method, steps=4, tasks=2, optimizer=None):
    """A user's own training loop."""
    params = jaxcl.init_params(method, jax.random.key(3), NET)
    tx = jaxcl.transform_optimizer(method, optimizer or optax.sgd(0.3), SETUP)
    loss = jaxcl.transform_loss(method, SETUP)
    opt_state = tx.init(params)
    for task in range(tasks):
        x = X + task
        data = jaxcl.array_data(x, Y, task)
        cache = jaxcl.before_task(method, params, opt_state, data, task=task)

        @jax.jit
        def step(params, opt_state, ctx):
            grads, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
            u, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
            return optax.apply_updates(params, u), opt_state

        for i in range(steps):
            ctx = jaxcl.context(x, Y, task=task, step=i, cache=cache)
            params, opt_state = step(params, opt_state, ctx)
        params, opt_state = jaxcl.after_task(method, params, opt_state, data, task=task)
    return params.net, opt_state.strategy


def test_fine_tuning_is_plain_optax():
    ours, _ = train(finetune(SETUP))
    net, tx = NET, optax.sgd(0.3)
    opt_state = tx.init(net)
    for task in range(2):
        for _ in range(4):

            def loss(w, task=task):
                logits = jnp.tanh((X + task) @ w["body"]) @ w["head"]
                return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

            u, opt_state = tx.update(jax.grad(loss)(net), opt_state)
            net = optax.apply_updates(net, u)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, net)


def test_a_chain_of_one_is_its_member():
    alone, state = train(ewc(SETUP, strength=3.0, samples=8))
    chained, (chained_state,) = train(jaxcl.chain(ewc(SETUP, strength=3.0, samples=8)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, chained
    )
    assert jax.tree.structure(state) == jax.tree.structure(chained_state)


def test_charges_of_a_chain_add_up():
    """A member's addition to the validation loss reads that member's aux and state."""

    def charging(start):
        return jaxcl.contract.strategy(
            init_aux=lambda key, net: jnp.float32(start),
            init=lambda params: 10 * params.aux,
            validation=lambda params, state, *, task: state + params.aux + task,
        )

    method = jaxcl.chain(charging(1), finetune(SETUP), charging(2))
    params = jaxcl.init_params(method, jax.random.key(0), NET)
    charge = method.validation(params, method.init(params), task=jnp.asarray(3))
    assert charge == (10 + 1 + 3) + 0 + (20 + 2 + 3)


def test_penalties_of_a_chain_add_up():
    """Two EWCs of strength 1 pull like one of strength 2."""
    two, _ = train(
        jaxcl.chain(*(ewc(SETUP, strength=1.0, samples=8) for _ in range(2)))
    )
    one, _ = train(ewc(SETUP, strength=2.0, samples=8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


def test_the_last_member_has_the_last_word():
    net, _ = train(jaxcl.chain(ewc(SETUP, strength=1.0, samples=8), frozen(SETUP)))
    first, _ = train(ewc(SETUP, strength=1.0, samples=8), tasks=1)
    # Two programs, each compiled by itself: they may differ by a rounding.
    np.testing.assert_allclose(net["body"], first["body"], rtol=1e-6, atol=1e-7)
    assert not np.array_equal(net["head"], first["head"])


def test_members_have_aux_keys_and_caches_of_their_own():
    ends = {"a": [], "bb": []}

    def member(name):
        def init_aux(key, net):
            return {name: jax.random.normal(key)}

        def init(params):
            assert set(params.aux) == {name}
            return jnp.zeros(())

        def before_task(params, state, *, data, model_state, task):
            return {f"of {name}": jnp.zeros(())}

        def loss(loss_fn, state):
            def own(params, ctx):
                value, out = loss_fn(params, ctx)
                assert set(params.aux) == {name}
                assert set(ctx.cache) == {f"of {name}"}
                return value + params.aux[name] ** 2, out

            return own

        def updates(updates, state, params, *, grads, ctx, out):
            for tree in (updates, params, grads):
                assert set(tree.aux) == {name}
            return updates, jax.random.uniform(ctx.key)

        def after_task(params, state, *, data, model_state, task, key):
            assert set(params.aux) == {name}
            ends[name].append(float(jax.random.uniform(key)))
            return params, state

        return jaxcl.strategy(
            init_aux=init_aux,
            init=init,
            before_task=before_task,
            loss=loss,
            updates=updates,
            after_task=after_task,
        )

    method = jaxcl.chain(member("a"), member("bb"))
    aux = method.init_aux(jax.random.key(3), NET)
    _, (one, two) = train(method)
    assert float(one) != float(two)
    assert len({*ends["a"], *ends["bb"]}) == 4  # two tasks, two members
    assert float(aux[0]["a"]) != float(aux[1]["bb"])


def test_strategies_survive_adam_and_jit():
    net, _ = train(frozen(SETUP), optimizer=optax.adamw(0.1, weight_decay=0.1))
    first, _ = train(
        frozen(SETUP), tasks=1, optimizer=optax.adamw(0.1, weight_decay=0.1)
    )
    # Two programs, each compiled by itself: they may differ by a rounding.
    np.testing.assert_allclose(net["body"], first["body"], rtol=1e-6, atol=1e-7)


def test_errors():
    with pytest.raises(ValueError, match="at least one strategy"):
        jaxcl.chain()
    with pytest.raises(ValueError, match="got 3 and 2"):
        jaxcl.array_data(jnp.zeros((3, 1)), jnp.zeros(2, int))
    with pytest.raises(ValueError, match="strength must be at least 0, got -1"):
        jaxcl.losses.quadratic_penalty(sum, anchor=(), importance=(), strength=-1)
    with pytest.raises(ValueError, match="5 outputs"):
        jaxcl.setup_for(
            lambda w, x: x, X, num_outputs=5, num_tasks=2, heads=(), scenario="task"
        )


@pytest.mark.parametrize("row", ["ewc", "mas", "gpm"])
def test_a_member_learns_from_what_those_before_it_make_of_the_network(row):
    """BP** makes all tasks use the first task's statistics: others are untrained."""
    from jaxcl.nn import models
    from jaxcl.nn.capture import init_fn
    from jaxcl.strategies import make

    model = models.MLP((6, 6), 4, norm="batch_per_task", num_tasks=2)
    of = dict(num_outputs=4, num_tasks=2, scenario="task")
    example = jax.ShapeDtypeStruct((8, 5), jnp.float32)
    setup = jaxcl.setup_for_linen(model, example, heads=(("head",),), **of)
    settings = {
        "ewc": {"strength": 1.0},
        "mas": {"strength": 1.0},
        "gpm": {"threshold": 0.99, "samples": 8},
    }[row]
    method = jaxcl.chain(frozen(setup), make(row, setup, settings))
    net, statistics = init_fn(model, setup.example)(jax.random.key(0))
    x = 2 + 3 * jax.random.normal(jax.random.key(1), (8, 5))
    y = jnp.arange(8) % 2 + 2

    def learned(statistics):
        params = jaxcl.init_params(method, jax.random.key(2), net)
        data = jaxcl.array_data(x, y, 1)
        _, state = method.after_task(
            params,
            method.init(params),
            data=data,
            model_state=statistics,
            task=jnp.int32(1),
            key=jax.random.key(3),
        )
        return jax.tree.leaves(state)

    def of_task(task, value):  # statistics of a task, [T, C]
        return jax.tree.map(lambda s: s.at[task].set(value), statistics)

    plain = learned(statistics)
    same = learned(of_task(1, 7.0))
    other = learned(of_task(0, 7.0))
    assert all((a == b).all() for a, b in zip(plain, same, strict=True))
    assert any((a != b).any() for a, b in zip(plain, other, strict=True))
