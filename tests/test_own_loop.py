"""What somebody's own training loop may do: refused in one line, or done right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.ops.linalg import span_update
from jaxcl.strategies import derpp, er, finetune, gpm, owm, si

KEY = jax.random.key(0)


def network(params, x):
    hidden = jnp.tanh(jaxcl.nn.dense(x, params["kernel"], params["bias"], name="body"))
    return jaxcl.nn.dense(hidden, params["head"], name="head")


NET = {
    "kernel": jax.random.normal(KEY, (6, 5)),
    "bias": jnp.zeros(5),
    "head": jax.random.normal(KEY, (5, 4)),
}
X = jax.random.normal(jax.random.key(1), (8, 6))
Y = jnp.arange(8) % 2


def setup_of(example=X, net=NET):
    return jaxcl.setup_for(
        *(network, example),
        num_outputs=4,
        num_tasks=2,
        heads=(("head",),),
        scenario="task",
        net=net,
    )


def stepper(method, optimizer, setup):
    """The start of a run, and the function that takes a step."""
    params = jaxcl.init_params(method, KEY, NET)
    tx = jaxcl.transform_optimizer(method, optimizer, setup)
    loss = jax.value_and_grad(jaxcl.transform_loss(method, setup), has_aux=True)

    @jax.jit
    def step(params, state, ctx):
        (value, out), grads = loss(params, state.strategy, ctx)
        updates, state = tx.update(grads, state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, updates), state, value

    return params, tx.init(params), step


@pytest.mark.parametrize("restarts", [False, True])
def test_momentum_of_an_old_task_moves_what_gpm_protects(restarts):
    """Unless the optimizer begins anew, as `after_task` can make it."""
    setup = setup_of()
    method, optimizer = gpm(setup, threshold=1.0), optax.sgd(0.1, momentum=0.9)
    params, state, step = stepper(method, optimizer, setup)
    few = X[:3]  # leaves directions for task 2
    for task, x in enumerate((few, X)):
        y = jnp.arange(len(x)) % 2
        for i in range(5):
            ctx = jaxcl.context(x, 2 * task + y, task=task, step=i)
            params, state, _ = step(params, state, ctx)
        if task == 0:
            params, state = jaxcl.after_task(
                *(method, params, state, jaxcl.array_data(x, y)),
                task=0,
                optimizer=optimizer if restarts else None,
            )
            old = params.net
    change = jax.tree.map(jnp.subtract, params.net, old)
    moved = float(jnp.abs(few @ change["kernel"] + change["bias"]).max())
    assert moved < 1e-5 if restarts else moved > 1e-3


def test_threshold_1_takes_the_span():
    """The shares may add up to 1 before the last direction, by rounding."""
    for seed in range(6):
        two = jax.random.normal(jax.random.key(seed), (2, 6, 3))
        samples = two[0] @ two[1].T
        for crossing in (False, True):
            _, count = span_update(
                jnp.zeros((6, 6)), jnp.zeros([], int), samples, 1.0, crossing=crossing
            )
            assert count == 3


@pytest.mark.parametrize("make", [si, derpp, owm])
def test_a_step_that_is_not_taken_leaves_no_trace(make):
    """`optax.apply_if_finite` skips it; the method's state must not become NaN."""
    setup = setup_of()
    settings = {} if make is owm else {"strength": 1.0}
    if make is derpp:
        settings = {"capacity": 8, "batch_size": 4}
    method = make(setup, **settings)
    guarded = optax.apply_if_finite(optax.sgd(0.1), 3)
    params, state, step = stepper(method, guarded, setup)
    for i in range(4):
        x = X * jnp.nan if i == 2 else X
        ctx = jaxcl.context(x, Y, task=0, step=i, epoch=0, task_progress=i / 4)
        before = state.strategy
        params, state, value = step(params, state, ctx)
        if i == 2:
            jax.tree.map(np.testing.assert_array_equal, state.strategy, before)
        else:
            assert np.isfinite(value)
    data = jaxcl.array_data(X, Y)
    params, state = jaxcl.after_task(method, params, state, data, task=0)
    ctx = jaxcl.context(X, Y + 2, task=1, epoch=0, task_progress=0.0)
    assert np.isfinite(step(params, state, ctx)[2])


def test_a_step_of_several_is_kept_whatever_became_of_the_last_update():
    setup = setup_of()
    guarded = optax.apply_if_finite(optax.sgd(0.1), 9)
    params, state, step = stepper(
        er(setup, capacity=99, batch_size=2), optax.MultiSteps(guarded, 2), setup
    )
    for i in range(4):
        x = X * jnp.nan if i == 1 else X
        ctx = jaxcl.context(x, Y, task=0, step=i, epoch=0)
        params, state, _ = step(params, state, ctx)
    assert state.strategy.memory.seen == 4 * len(X)


def test_a_model_that_gives_no_logits_per_class_is_refused():
    setup = jaxcl.setup_for(
        lambda params, x: network(params, x)[:, 0],
        X,
        num_outputs=4,
        num_tasks=2,
        heads=(("head",),),
    )
    method = finetune(setup)
    loss = jaxcl.transform_loss(method, setup)
    params = jaxcl.init_params(method, KEY, NET)
    with pytest.raises(ValueError, match=r"logits \[8, 4\], it gives \[8\]"):
        loss(params, (), jaxcl.context(X, Y, task=0))


@pytest.mark.parametrize(
    "y, told",
    [
        (Y + 0.7, r"float32\[8\]"),
        (Y[:, None], r"int32\[8, 1\]"),
        (jax.nn.one_hot(Y, 4), r"float32\[8, 4\]"),
    ],
)
def test_targets_are_class_numbers(y, told):
    for make in (jaxcl.context, jaxcl.array_data):
        with pytest.raises(ValueError, match=told):
            make(X, y, task=0)


def test_inputs_are_one_array():
    with pytest.raises(ValueError, match="inputs x are one array, got a tuple"):
        jaxcl.context((X, X), Y, task=0)


def test_a_memory_of_whole_numbers_refuses_fractions():
    """It stored zeros."""
    setup = setup_of(np.zeros((4, 6), np.uint8), None)
    params, state, step = stepper(
        er(setup, capacity=4, batch_size=2), optax.sgd(0.1), setup
    )
    with pytest.raises(ValueError, match="uint8, as the setup's example is"):
        step(params, state, jaxcl.context(X, Y, task=0, epoch=0))
