"""What somebody's own training loop may do: refused in one line, or done right."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.ops.linalg import span_update
from jaxcl.strategies import derpp, er, finetune, gpm, owm, si
from jaxcl.training.programs import trace
from jaxcl.types import Output

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


def not_finite(optimizer):
    return optax.MultiSteps(
        optimizer, 1, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation()


def if_finite(optimizer):
    return optax.apply_if_finite(optimizer, 3)


GUARDS = (if_finite, not_finite)
GUARDED = [(make, guard) for make in (er, derpp, owm) for guard in GUARDS]


@pytest.mark.parametrize("make, guard", [(si, if_finite), *GUARDED])
def test_a_step_that_is_not_taken_leaves_no_trace(make, guard):
    """optax skips it; the method's state must not become NaN."""
    setup = setup_of()
    settings = {} if make is owm else {"capacity": 8, "batch_size": 4}
    settings = {"strength": 1.0} if make is si else settings
    method = make(setup, **settings)
    params, state, step = stepper(method, guard(optax.sgd(0.1)), setup)
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


WIDE = {
    "kernel": jax.random.normal(KEY, (6, 40)),  # wider than a batch has rows
    "bias": jnp.zeros(40),
    "head": jax.random.normal(KEY, (40, 4)),
}


def test_what_is_added_to_the_loss_is_projected_too():
    """A term of one's own, which no backward pass of a layer sees."""
    setup = setup_of(net=WIDE)
    method = gpm(setup, threshold=1.0)
    assert method.beside is not None  # alone it would project the layer's input
    params = jaxcl.init_params(method, KEY, WIDE)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
    bare, state = jaxcl.transform_loss(method, setup), tx.init(params)

    def loss(params, state, ctx):
        value, out = bare(params, state, ctx)
        return value + sum(jnp.sum(w**2) for w in jax.tree.leaves(params.net)), out

    few = X[:3]
    params, state = jaxcl.after_task(
        method, params, state, jaxcl.array_data(few, Y[:3]), task=0
    )
    ctx = jaxcl.context(X, Y + 2, task=1)
    grads, out = jax.grad(loss, has_aux=True)(params, state.strategy, ctx)
    updates, _ = tx.update(grads, state, params, ctx=ctx, out=out)
    moved = updates.net["kernel"]
    assert float(jnp.abs(moved).max()) > 1e-2
    np.testing.assert_allclose(few @ moved, 0, atol=1e-5)


def test_a_method_chooses_the_statistics_of_the_next_step():
    held = jaxcl.strategy(model_state=lambda new, state, *, old, ctx: old)

    def counting(net, state, x, task, key, train):
        state = {"mean": state["mean"] + 1}
        return Output(logits=network(net, x), taps={}, model_state=state)

    setup = setup_of()._replace(apply_fn=counting, model_state={"mean": jnp.zeros(())})
    ctx = jaxcl.context(X, Y, task=0, model_state={"mean": jnp.zeros(())})
    params = jaxcl.init_params(held, KEY, NET)
    for method, seen in ((held, 0), (jaxcl.strategy(), 1)):
        _, out = jaxcl.transform_loss(method, setup)(params, (), ctx)
        assert out.model_state == {"mean": seen}


def of_windows(net, x):
    x = jaxcl.nn.conv(x, net["kernel"], None, name="conv")
    return jaxcl.nn.dense(x.reshape(len(x), -1), net["head"], name="head")


def outputs_first(net, x):
    return jaxcl.nn.dense(x, net["body"], axis=0, name="body") @ net["head"]


@pytest.mark.parametrize(
    "optimizer, dense, windows, first",
    [
        (optax.sgd(0.1, momentum=0.9), False, False, False),
        # Muon takes windows by Adam; unit-wise clipping scales a matrix's columns.
        (optax.contrib.muon(0.1), False, True, False),
        (
            optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)),
            False,
            None,
            True,
        ),
        (
            optax.partition(
                {"matrix": optax.sgd(0.1), "else": optax.adam(0.1)},
                lambda tree: jax.tree.map(
                    lambda w: "matrix" if w.ndim == 2 else "else", tree
                ),
            ),
            *(False, True, False),
        ),
    ],
    ids=["sgd", "muon", "unit-wise clip", "partition"],
)
def test_an_optimizer_is_tried_on_kernels_like_the_networks(
    optimizer, dense, windows, first
):
    """Whether it leaves the subspace can depend on a kernel's axes."""
    kernel = jax.random.normal(KEY, (2, 2, 1, 3))
    setups = {
        "dense": setup_of(),
        "windows": jaxcl.setup_for(
            of_windows,
            jnp.ones((8, 3, 3, 1)),
            net={"kernel": kernel, "head": jnp.ones((12, 4))},
            num_outputs=4,
            num_tasks=2,
            heads=(("head",),),
            scenario="task",
        ),
        "first": jaxcl.setup_for(
            outputs_first,
            X,
            net={"body": jnp.ones((5, 6)), "head": jnp.ones((5, 4))},
            num_outputs=4,
            num_tasks=2,
            heads=(("head",),),
            scenario="task",
        ),
    }
    for name, leaves in (("dense", dense), ("windows", windows), ("first", first)):
        if leaves is None:
            continue
        setup = setups[name]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jaxcl.transform_optimizer(gpm(setup, threshold=0.9), optimizer, setup)
        told = ["are not protected" in str(w.message) for w in caught]
        assert told == [True] * leaves, name


def test_an_optimizer_is_wrapped_inside_jit_as_outside():
    setup = setup_of()
    method = gpm(setup, threshold=0.9)

    def start(params):
        return jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(start)(jaxcl.init_params(method, KEY, NET))


def test_no_key_is_used_twice():
    """A task's end draws from another key than any of its steps."""
    seen = []
    method = jaxcl.strategy(
        after_task=lambda params, state, *, key, **_: (
            seen.append(key) or params,
            state,
        )
    )
    data, params = jaxcl.array_data(X, Y), jaxcl.init_params(method, KEY, NET)
    state = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup_of()).init(params)
    jaxcl.after_task(method, params, state, data, task=0)
    (key,) = seen
    ends = [*jax.random.split(key), *(jax.random.fold_in(key, i) for i in range(2))]
    steps = [jaxcl.context(X, Y, task=0, step=i).key for i in range(3)]
    for end in (key, *ends):
        for step in steps:
            assert (jax.random.key_data(end) != jax.random.key_data(step)).any()


@pytest.mark.parametrize(
    "hook, made, told",
    [
        ("after_task", lambda p, s: p, "after_task has to give two things.* Params"),
        ("after_task", lambda p, s: (p, (s, s)), "give state like .* it gave"),
        ("after_task", lambda p, s: (p, s[None]), r"it was float32\[3\] and is .*1, 3"),
        ("after_task", lambda p, s: (p.net, s), "give params like .* it gave"),
        ("grads", lambda p, s: p, "grads has to give two things"),
        ("grads", lambda p, s: (p, s.astype(int)), r"was float32\[3\] and is int32"),
        ("updates", lambda p, s: None, "updates has to give two things.* NoneType"),
    ],
)
def test_a_hook_that_gives_something_else_is_named(hook, made, told, problem):
    """In one's own loop, and in this project's before anything has been trained."""
    setup = setup_of()

    def own(*_):
        return jaxcl.strategy(
            init=lambda params: jnp.zeros(3),
            **{hook: lambda tree, state, *rest, **extra: made(tree, state)},
        )

    method = own()
    params, state, step = stepper(method, optax.sgd(0.1), setup)
    with pytest.raises(ValueError, match=told):
        if hook == "after_task":
            data = jaxcl.array_data(X, Y)
            jaxcl.after_task(method, params, state, data, task=0)
        else:
            step(params, state, jaxcl.context(X, Y, task=0))
    with pytest.raises(ValueError, match=told):
        trace(problem(make_strategy=own))
