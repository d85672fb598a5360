"""The learning rate over a task, as the updates of a compiled epoch show it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import after_each_task

from jaxcl.contract import strategy
from jaxcl.training.optimizers import make_optimizer
from jaxcl.training.plan import Plan, validate_plan

STEPS = 64  # more than a task has


def recorder(setup):
    """Every gradient is 1; the state holds the first weight's change in each step."""

    def grads(grads, state, params, *, ctx, out):
        net = {
            k: {n: jnp.ones_like(v) for n, v in p.items()} for k, p in grads.net.items()
        }
        return grads._replace(net=net), state

    def updates(updates, state, params, *, grads, ctx, out):
        moved = updates.net["hidden_0"]["kernel"][0, 0]
        return updates, state.at[ctx.task, ctx.step].set(moved)

    def init(params):
        return jnp.zeros((setup.num_tasks, STEPS))

    return strategy(init=init, grads=grads, updates=updates)


def by_hand(n, epochs, task, schedule, warmup, decay, floor=0.0):
    p = np.arange(n * epochs) / (n * epochs)
    q = np.clip((p - warmup) / (1 - warmup), 0, 1)
    shape = {
        "constant": np.ones_like(q),
        "cosine": (1 + np.cos(np.pi * q)) / 2,
        "linear": 1 - q,
    }[schedule]
    if warmup:
        shape = np.where(p < warmup, p / warmup, shape)
    return -max(0.1 * decay**task, floor) * shape


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
@pytest.mark.parametrize(
    "schedule,warmup,decay,floor",
    [
        ("constant", 0.0, 1.0, 0.0),
        ("cosine", 0.0, 1.0, 0.0),
        ("linear", 0.25, 0.8, 0.0),
        ("cosine", 0.3, 0.5, 0.04),
        ("constant", 0.5, 1.0, 0.0),
    ],
)
def test_each_step_has_its_rate(problem, schedule, warmup, decay, floor, seed_mode):
    plan = dict(schedule=schedule, warmup=warmup, decay_per_task=decay)
    plan |= dict(lr_floor=floor, lr=0.1)
    p = problem(make_strategy=recorder, plan=plan, seeds=(0, 1), seed_mode=seed_mode)
    moved = after_each_task(p)[-1].strategy_state
    epochs, batch = p.plan.epochs, p.plan.batch_size
    sizes = np.diff(np.asarray(p.stream.per_seed.train.offset), axis=-1)
    for seed in range(2):
        for task in range(p.stream.num_tasks):
            n = -(-int(sizes[seed, task]) // batch)
            exact = by_hand(n, epochs, task, schedule, warmup, decay, floor)
            np.testing.assert_allclose(
                moved[seed, task, : n * epochs], exact, rtol=1e-5, atol=1e-7
            )
            assert not moved[seed, task, n * epochs :].any()


def test_the_only_training_of_joint_once_has_the_first_tasks_rate(problem, finish):
    """Its number is that of the last task, but no task came before it."""
    runs = [
        finish(
            problem(joint=True, plan={"decay_per_task": d})._replace(joint_once=True)
        )
        for d in (1.0, 0.01)
    ]
    np.testing.assert_array_equal(runs[0].accuracy, runs[1].accuracy)
    learned = runs[0].accuracy[:, -1] - runs[0].baseline
    assert learned.mean() > 0.2  # at a rate of .01² it would be near 0


def test_the_schedule_is_optax_own_over_one_task(problem):
    p = problem(make_strategy=recorder, plan={"schedule": "cosine"}, seeds=(0,))
    moved = after_each_task(p)[-1].strategy_state[0, 0]
    n = int((moved != 0).sum())
    exact = [-0.1 * optax.cosine_decay_schedule(1.0, n)(i) for i in range(n)]
    np.testing.assert_allclose(moved[:n], exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"schedule": "step"}, "schedule must be one of constant, cosine, linear"),
        ({"warmup": 1.0}, "warmup must lie in .0, 1., got 1.0"),
        ({"decay_per_task": 0.0}, "decay_per_task must be greater than 0, got 0.0"),
        (
            {"lr": 0.1, "lr_floor": 0.2},
            "lr_floor must be at most the rate, 0.1, got 0.2",
        ),
        ({"lr": 0.1, "lr_floor": -0.2}, "lr_floor must be at least 0, got -0.2"),
        ({"schedule": "cosine", "patience": 3}, "patience=3 and a schedule would both"),
        ({"warmup": 0.1, "patience": 3}, "patience=3 and a schedule would both"),
        ({"decay_per_task": 0.5, "patience": 3}, "would both"),
    ],
)
def test_schedules_there_are_not(fields, message):
    with pytest.raises(ValueError, match=message):
        validate_plan(Plan(epochs=1, batch_size=8, **fields), has_validation=True)


@pytest.mark.parametrize("most", [0.5, 1e3])
def test_a_clip_is_optaxs(most):
    rng = np.random.default_rng(0)
    grads = {"a": rng.normal(size=(90, 70)), "b": rng.normal(size=7)}
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
    ours, theirs = make_optimizer("sgd", 0.1, clip=most), optax.sgd(0.1)
    theirs = optax.chain(optax.clip_by_global_norm(most), theirs)
    state = ours.init(grads)
    assert jax.tree.structure(state) == jax.tree.structure(theirs.init(grads))
    got = jax.jit(ours.update)(grads, state)[0]
    expected = theirs.update(grads, theirs.init(grads))[0]
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
    zero = jax.tree.map(jnp.zeros_like, grads)
    assert not any(leaf.any() for leaf in jax.tree.leaves(ours.update(zero, state)[0]))
