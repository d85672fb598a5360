"""Wrong arguments of the library's functions: one line that names value and rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.strategies import finetune

X, Y = jax.random.normal(jax.random.key(0), (8, 6)), jnp.arange(8) % 2
NET = {"head": {"kernel": jnp.full((6, 4), 0.1), "bias": jnp.zeros(4)}}


def network(net, x):
    head = net["head"]
    return jaxcl.nn.dense(x, head["kernel"], head["bias"], name="head")


def setup_of(scenario="task", forward=network, **given):
    options = dict(num_outputs=4, num_tasks=2, heads=(("head",),), net=NET)
    return jaxcl.setup_for(forward, X, scenario=scenario, **(options | given))


def refused(call, *said):
    """The call ends in a ValueError of one line that says all this."""
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in said), text


def table(**cases):
    return pytest.mark.parametrize("call, said", cases.values(), ids=cases.keys())


def context(x=X, y=Y, **given):
    return lambda: jaxcl.context(x, y, **({"task": 0} | given))


@table(
    above=(context(epoch_progress=7.0), ["epoch_progress must", "[0, 1]", "7.0"]),
    nan=(context(epoch_fraction=np.nan), ["epoch_fraction must", "nan"]),
    below=(context(task_progress=-1.0), ["task_progress must", "-1.0"]),
    fraction=(context(task=0.5), ["task must be an integer", "0.5"]),
    text=(context(task="1"), ["task must be an integer", "'1'"]),
    negative=(context(task=-1), ["task must be at least 0", "-1"]),
    step=(context(step=-1), ["step must be at least 0", "-1"]),
    seed=(context(seed="a"), ["seed must be an integer", "'a'"]),
    epoch=(context(epoch=0.5), ["epoch must be an integer", "0.5"]),
    index=(context(index=jnp.arange(5)), ["index must be int[8]", "int32[5]"]),
    float_index=(context(index=jnp.zeros(8)), ["index must be int[8]", "float32"]),
    pairs=(context(index=jnp.zeros((8, 1), int)), ["int[8]", "[8, 1]"]),
    empty=(context(X[:0], Y[:0]), ["non-zero number of rows", "[0]"]),
    scalar=(context(jnp.zeros(()), Y), ["number of rows", "got [] and [8]"]),
    no_rows=(lambda: jaxcl.array_data(0.0, Y), ["number of rows", "got [] and [8]"]),
    words=(context(y=["a"] * 8), ["targets y are numbers of classes"]),
    no_task=(lambda: jaxcl.array_data(X, Y, 0.5), ["task must be an integer", "0.5"]),
)
def test_a_context(call, said):
    refused(call, *said)


def test_targets_may_be_a_list():
    assert jaxcl.context(X, [0, 1] * 4, task=0).batch.y.tolist() == [0, 1] * 4
    assert jaxcl.array_data(X, [0, 1] * 4).take(jnp.arange(2)).y.tolist() == [0, 1]


@pytest.mark.parametrize(
    "scenario, task, y", [("task", 1, 0), ("task", 0, 2), ("class", 0, 3)]
)
def test_targets_that_are_not_in_play(scenario, task, y):
    """Their loss was infinite."""
    setup, y = setup_of(scenario), jnp.full(8, y)
    said = ["targets y must be outputs of task", f"got {y[0]}"]
    for make in (jaxcl.context, jaxcl.array_data):
        refused(lambda: make(X, y, task=task, setup=setup), *said)
    loss = jaxcl.transform_loss(finetune(setup), setup)
    params = jaxcl.init_params(finetune(setup), jax.random.key(0), NET)
    ctx = jaxcl.context(X, y, task=task)
    refused(lambda: loss(params, (), ctx), *said)
    padding = ctx._replace(batch=ctx.batch._replace(weight=jnp.zeros(8)))
    assert loss(params, (), padding)[0] == 0
    jax.jit(loss)(params, (), ctx)  # tracers pass


@pytest.mark.parametrize("of, task", [(0, 1), (1, 0), (0, -1), (9, 9), (0, 0.5)])
def test_a_task_begins_and_ends_with_its_own_data(of, task):
    """SLDA absorbed nothing, A-GEM stored the examples under task 0."""
    setup = setup_of()
    method = finetune(setup)
    params = jaxcl.init_params(method, jax.random.key(0), NET)
    state = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)
    data = jaxcl.array_data(X, Y, of)
    for hook in (jaxcl.before_task, jaxcl.after_task):
        refused(
            lambda: hook(method, params, state, data, task=task, setup=setup),
            "task must",
            f"got {task}",
        )
    jax.jit(lambda t: jaxcl.before_task(method, params, state, data, task=t))(1)
