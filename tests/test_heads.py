"""Outputs that are not in play do not change; those that a step reaches do."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import CASES
from test_gpm import make_setup

import jaxcl
from jaxcl.checks import bytes_of
from jaxcl.heads import cross_entropy
from jaxcl.nn import capture, models
from jaxcl.strategies import agem, er, finetune, gpm, make
from jaxcl.strategies.agem import reference_gradient
from jaxcl.testing.loop import step_of

MODEL = models.MLP((8,), 6)
SETUP = make_setup(MODEL, scenario="task")._replace(model_state={})
NET, _ = capture.init_fn(MODEL, SETUP.example)(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (10, 8, 8, 1))
Y = jnp.arange(10) % 2
DECAY, RATE = 1.0, 0.05
# Momentum and decay would change every weight, even without a gradient.
PUSHING = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=0.9))
ADAMW = optax.adamw(RATE, weight_decay=DECAY)
# Of the six outputs, those of tasks 1 and 2 are trained in task 2 …
TRAINS_OLD = ("lwf", "agem", "er")
# … or all, where DER++ distils all of a replayed example's old logits.
TRAINS_ALL = ("derpp",)
GENTLE = {
    "gpm": {"where": "updates"},
    "owm": {"where": "updates"},
    "ol": {"extractor": 0.0},  # heads from the first step on
}


def train(method, tasks, steps=6, optimizer=PUSHING, setup=SETUP):
    """The network after each task in a loop that restarts the optimizer."""
    params, history = jaxcl.init_params(method, jax.random.key(3), NET), []
    loss = jaxcl.transform_loss(method, setup)
    tx = jaxcl.transform_optimizer(method, optimizer, setup)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, ctx):
        g, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, opt_state = tx.update(g, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, u), opt_state

    for task in tasks:
        data = jaxcl.array_data(X + task, Y + 2 * task, task)
        cache = jaxcl.before_task(method, params, opt_state, data, task=task)
        opt_state = opt_state._replace(inner=tx.init(params).inner)
        for i in range(steps):
            given = {"step": i, "cache": cache} | step_of(0)
            ctx = jaxcl.context(X + task, Y + 2 * task, task=task, **given)
            params, opt_state = step(params, opt_state, ctx)
        params, opt_state = jaxcl.after_task(method, params, opt_state, data, task=task)
        history.append(params.net)
    return history


def moved(before, after, columns):
    """Which of the outputs have a kernel column or a bias that changed by any bit."""
    kernel = np.asarray(after["head"]["kernel"] != before["head"]["kernel"]).any(0)
    return (kernel | np.asarray(after["head"]["bias"] != before["head"]["bias"]))[
        columns
    ]


@pytest.mark.parametrize("optimizer", [PUSHING, ADAMW], ids=["momentum", "adamw"])
@pytest.mark.parametrize("name", CASES)
def test_only_heads_in_play_move(name, optimizer):
    method = make(name, SETUP, CASES[name][0] | GENTLE.get(name, {}))
    first, second = train(method, (0, 1), optimizer=optimizer)
    old, own, future = slice(0, 2), slice(2, 4), slice(4, 6)
    assert moved(first, second, own).all()
    assert moved(first, second, old).all() == (name in TRAINS_OLD + TRAINS_ALL)
    assert moved(first, second, old).any() == (name in TRAINS_OLD + TRAINS_ALL)
    assert moved(first, second, future).any() == (name in TRAINS_ALL)


def test_what_is_in_play_moves_as_the_optimizer_says():
    plain, tx = NET, PUSHING
    opt_state = tx.init(plain)
    for _ in range(6):

        def loss(net):
            out = SETUP.apply_fn(
                net, {}, X, jnp.zeros(10, jnp.int32), jax.random.key(0), True
            )
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                out.logits[:, :2], Y
            ).mean()

        u, opt_state = tx.update(jax.grad(loss)(plain), opt_state, plain)
        plain = optax.apply_updates(plain, u)
    (ours,) = train(finetune(SETUP), (0,))
    for layer in ("hidden_0", "head"):
        for leaf, expected in plain[layer].items():
            got = ours[layer][leaf]
            own = slice(0, 2) if layer == "head" else slice(None)
            np.testing.assert_allclose(got[..., own], expected[..., own], atol=1e-6)
            if layer == "head":
                np.testing.assert_array_equal(got[..., 2:], NET[layer][leaf][..., 2:])
                shrunk = np.abs(expected[..., 2:]) < np.abs(NET[layer][leaf][..., 2:])
                assert shrunk.all()


def update(method, ctx, state, optimizer=PUSHING, setup=SETUP):
    """One step's gradient and update of the network."""

    loss = jaxcl.transform_loss(method, setup)
    tx = jaxcl.transform_optimizer(method, optimizer, setup)

    @jax.jit
    def run(ctx, state):
        params = jaxcl.Params(NET, {})
        opt_state = tx.init(params)._replace(strategy=state)
        g, out = jax.grad(loss, has_aux=True)(params, state, ctx)
        u, _ = tx.update(g, opt_state, params, ctx=ctx, out=out)
        return g.net, u.net

    return run(ctx, state)


def test_heads_of_several_tasks_in_a_batch_are_in_play_and_padding_is_not():
    ctx = jaxcl.context(X, Y, task=2)
    task = jnp.array([0, 2] * 4 + [1, 1])
    weight = jnp.array([1.0] * 8 + [0.0] * 2)
    batch = ctx.batch._replace(task=task, y=Y + 2 * task, weight=weight)
    _, u = update(finetune(SETUP), ctx._replace(batch=batch), ())
    in_play = np.asarray(u["head"]["kernel"]).any(0)
    np.testing.assert_array_equal(in_play, [1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("conflict", [False, True])
def test_a_reference_gradient_is_in_play_whether_or_not_it_conflicts(conflict):
    method = agem(SETUP, per_class=5, batch_size=4)
    params = jaxcl.Params(NET, {})
    _, state = method.after_task(
        *(params, method.init(params)),
        data=jaxcl.array_data(X, Y, 0),
        model_state={},
        task=jnp.asarray(0),
        key=jax.random.key(0),
    )
    # The other sign gives another gradient; another seed draws other examples.
    for seed, sign in product(range(4), (1.0, -1.0)):
        ctx = jaxcl.context(sign * X, Y + 4, task=2, seed=seed)
        g, u = update(method, ctx, state)
        r = reference_gradient(SETUP, NET, 4, state, ctx)
        along = sum(
            jnp.vdot(a, b)
            for a, b in zip(jax.tree.leaves(g), jax.tree.leaves(r), strict=True)
        )
        if (along < 0) == conflict:
            break
    else:
        raise AssertionError("no such step")
    assert not g["head"]["kernel"][:, :4].any()
    w = NET["head"]["kernel"]
    share = along / sum(jnp.vdot(a, a) for a in jax.tree.leaves(r)) if conflict else 0.0
    expected = -RATE * (DECAY * w - share * r["head"]["kernel"])
    np.testing.assert_allclose(
        u["head"]["kernel"][:, :2], expected[:, :2], rtol=1e-4, atol=1e-7
    )
    assert not u["head"]["kernel"][:, 2:4].any()


def test_a_saturated_replayed_example_is_in_play():
    """Its gradient is 0 in float32: only the replay shows that it takes part."""
    method = er(SETUP, capacity=4, batch_size=4)
    # So clearly correct that the softmax is exactly 1 and 0.
    net = jax.tree.map(lambda a: a, NET)
    net["head"]["bias"] = net["head"]["bias"].at[0].set(1e4)
    past = jaxcl.context(X[:4], jnp.zeros(4, int), task=0)
    params = jaxcl.Params(net, {})
    state = method.init(params)
    _, state = method.grads(params, state, params, ctx=past, out=None)
    ctx = jaxcl.context(X, Y + 4, task=2)
    loss = jaxcl.transform_loss(method, SETUP)
    tx = jaxcl.transform_optimizer(method, PUSHING, SETUP)
    opt_state = tx.init(params)._replace(strategy=state)
    g, out = jax.grad(loss, has_aux=True)(params, state, ctx)
    u, _ = tx.update(g, opt_state, params, ctx=ctx, out=out)
    assert not g.net["head"]["kernel"][:, :4].any()
    moving = np.asarray(u.net["head"]["kernel"]).any(0)
    np.testing.assert_array_equal(moving, [1, 1, 0, 0, 1, 1])


def test_in_a_chain_replayed_heads_learn_beside_gpm():
    replay = partial(er, SETUP, capacity=20, batch_size=4)
    method = jaxcl.chain(replay(), gpm(SETUP, threshold=0.9, samples=10))
    first, second = train(method, (0, 1), optimizer=optax.sgd(RATE))
    assert moved(first, second, slice(0, 4)).all()
    assert not moved(first, second, slice(4, 6)).any()


def test_class_incremental_outputs_of_later_tasks_stand_still():
    setup = make_setup(MODEL, scenario="class")
    first, second = train(finetune(setup), (0, 1), setup=setup)
    assert moved(first, second, slice(0, 4)).all()
    assert not moved(NET, second, slice(4, 6)).any()
    assert not moved(NET, first, slice(2, 6)).any()


def test_shared_outputs_are_all_in_play():
    mask = jnp.ones((3, 6), bool)
    loss = cross_entropy(mask, "example")
    setup = SETUP._replace(logit_mask=mask, task_loss=loss)
    (after,) = train(finetune(setup), (0,), setup=setup)
    assert moved(NET, after, slice(None)).all()


def test_heads_that_name_no_parameter_with_the_outputs_are_refused():
    no_outputs = "names no parameter whose last axis"
    for heads, message in (
        ((), no_outputs),
        ((("classifier",),), "'classifier' matches no parameter; there are head"),
        ((("hidden_0",),), no_outputs),
    ):
        setup = SETUP._replace(heads=heads)
        with pytest.raises(ValueError, match=message):
            train(finetune(setup), (0,), setup=setup)


def test_an_empty_memory_puts_nothing_in_play():
    method = er(SETUP, capacity=4, batch_size=4)
    state = method.init(jaxcl.Params(NET, {}))
    assert bytes_of(state.memory) > 0
    assert not method.in_play(state, ctx=jaxcl.context(X, Y + 4, task=2)).any()
