"""What every registered strategy owes: the contract suite over a table of factories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.nn import models
from jaxcl.setup import array_data
from jaxcl.strategies import METHODS, factory, make, strategy_name
from jaxcl.training import protocol
from jaxcl.training.problem import make_setup
from jaxcl.training.protocol import EpochDone
from jaxcl.training.seeds import SeedMesh

# name -> settings that do something, and settings at which a step is BP's own.
CASES: dict[str, tuple[dict, dict | None]] = {
    "finetune": ({}, {}),
    "frozen": ({}, None),
    "ewc": ({"strength": 3.0}, {"strength": 0.0}),
    "gpm": ({"threshold": 0.9, "samples": 20}, None),
    "owm": ({"alpha": 0.1}, None),
    "si": ({"strength": 1.0}, {"strength": 0.0}),
    "mas": ({"strength": 1.0, "samples": 20}, {"strength": 0.0}),
    "lwf": ({}, {"strength": 0.0}),
    "agem": ({"per_class": 2, "batch_size": 4}, {}),  # nothing in the memory yet
    "er": ({"capacity": 20, "batch_size": 4}, {}),
    "derpp": ({"capacity": 20, "batch_size": 4}, {"alpha": 0.0, "beta": 0.0}),
    "hat": ({"strength": 0.75}, None),
}
OPTIMIZER = optax.sgd(0.1)


def test_every_strategy_is_in_the_table():
    assert set(CASES) == {strategy_name(method) for method in METHODS.values()}


@pytest.fixture
def parts(problem):
    """Setup, initial net and data of a small problem, without the protocol."""

    def build(name, settings):
        p = problem(name, settings)
        setup = make_setup(p.model, p.stream, 8)
        net, model_state = jaxcl.nn.capture.init_fn(p.model, setup.example)(
            jax.random.key(0)
        )
        x = jax.random.normal(jax.random.key(1), (24, 4, 4, 1))
        y = jnp.arange(24) % 2
        return make(name, setup, settings), setup, net, model_state, x, y

    return build


def _step(method, setup, aux, state, net, x, y, task, cache=()):
    params = jaxcl.Params(net, aux)
    tx = jaxcl.transform_optimizer(method, OPTIMIZER, state, setup)
    loss = jaxcl.transform_loss(method, setup.task_loss, setup.apply_fn)
    ctx = jaxcl.context(x, y, task=task, step=1, cache=cache)
    (value, out), grads = jax.value_and_grad(loss, has_aux=True)(params, state, ctx)
    opt_state = tx.init(params)
    updates, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
    return optax.apply_updates(params, updates), opt_state[1], value


@pytest.mark.parametrize("name", CASES)
def test_the_state_tree_is_stable(parts, name):
    """Shapes, dtypes and structure do not change over steps and tasks."""
    method, setup, net, model_state, x, y = parts(name, CASES[name][0])
    aux, state = method.init(jax.random.key(2), net)
    shape = jax.tree.map(jnp.shape, (aux, state))
    dtype = jax.tree.map(lambda a: jnp.asarray(a).dtype, (aux, state))
    for task in range(3):
        data = array_data(x, y + 2 * task, task)
        cache = method.prepare(state, data)
        params, state, _ = _step(
            method, setup, aux, state, net, x[:8], y[:8] + 2 * task, task, cache
        )
        ctx = jaxcl.context(x[:8], y[:8], task=task, cache=cache)
        params, state = method.after_task(state, params, model_state, ctx, data)
        net, aux = params
        assert jax.tree.map(jnp.shape, (aux, state)) == shape
        assert jax.tree.map(lambda a: jnp.asarray(a).dtype, (aux, state)) == dtype
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(net))


@pytest.mark.parametrize("name", CASES)
def test_one_trace_for_three_tasks(problem, name):
    mesh = SeedMesh(3)
    list(protocol.run(problem(name, CASES[name][0]), mesh=mesh))
    assert set(mesh.traces.values()) == {1}


@pytest.mark.parametrize("name", CASES)
def test_vmapped_seeds_equal_a_loop(problem, name):
    def losses(mode):
        events = protocol.run(problem(name, CASES[name][0], seed_mode=mode))
        return [e.metrics.valid_loss for e in events if isinstance(e, EpochDone)]

    np.testing.assert_allclose(losses("map"), losses("vmap"), atol=1e-5)


@pytest.mark.parametrize("name", [n for n, (_, neutral) in CASES.items() if neutral])
def test_a_neutral_setting_is_bp(parts, name):
    """After a task has been consolidated, one step equals BP's within 1e-6."""
    method, setup, net, model_state, x, y = parts(name, CASES[name][1])
    aux, state = method.init(jax.random.key(2), net)
    ctx = jaxcl.context(x[:8], y[:8], task=0)
    params = jaxcl.Params(net, aux)
    data = array_data(x, y, 0)
    params, state = method.after_task(state, params, model_state, ctx, data)
    moved = jax.tree.map(lambda a: a + 0.01, params.net)
    cache = method.prepare(state, array_data(x, y + 2, 1))
    ours = _step(method, setup, aux, state, moved, x[:8], y[:8] + 2, 1, cache)[0]
    bp = make("finetune", setup, {})
    theirs = _step(bp, setup, {}, (), moved, x[:8], y[:8] + 2, 1)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours.net, theirs.net
    )


@pytest.mark.parametrize("name", CASES)
def test_a_run_survives_its_checkpoint(problem, tmp_path, name):
    def build():
        return problem(name, CASES[name][0], seeds=(0,))

    events = protocol.run(build(), checkpoints=tmp_path)
    whole = []
    for event in events:
        whole.append(event)
        if isinstance(event, protocol.TaskDone) and event.task == 1:
            break
    events.close()
    *_, resumed = protocol.run(build(), checkpoints=tmp_path)
    *_, unbroken = protocol.run(build())
    np.testing.assert_array_equal(resumed.accuracy, unbroken.accuracy)


def test_frozen_moves_heads_only_after_task_one(parts):
    method, setup, net, *_, x, y = parts("frozen", {})
    before = _step(method, setup, {}, (), net, x[:8], y[:8], 0)[0].net
    after = _step(method, setup, {}, (), net, x[:8], y[:8] + 2, 1)[0].net

    def moved(new, layer):
        return not np.array_equal(new[layer]["kernel"], net[layer]["kernel"])

    assert moved(before, "hidden_0") and moved(before, "head")
    assert not moved(after, "hidden_0") and moved(after, "head")


def test_frozen_keeps_statistics(problem):
    """With running BatchNorm and momentum, tasks 2 and 3 leave task 1's output be."""
    build = problem(
        "frozen",
        model=lambda k: models.AlexNet(k, width=0.05, norm="batch"),
        optimizer=optax.sgd(0.05, momentum=0.9),
        seeds=(0,),
        **{"scenario": "task"},
    )
    big = build.stream._replace(input_shape=(32, 32, 1))

    def image(flat):
        small = flat.reshape(-1, 4, 4)
        return np.repeat(np.repeat(small, 8, 1), 8, 2).reshape(len(flat), -1)

    base = big.base._replace(
        train_x=image(big.base.train_x), test_x=image(big.base.test_x)
    )
    build = build._replace(stream=big._replace(base=base))
    *_, last = protocol.run(build)
    a = last.accuracy[0]
    assert a[0, 0] == a[1, 0] == a[2, 0]
    assert a[1, 1] == a[2, 1]


def test_frozen_needs_heads(parts):
    setup = parts("finetune", {})[1]
    with pytest.raises(ValueError, match="heads"):
        make("frozen", setup._replace(heads=()), {})


def test_factories_by_name_and_import_path():
    assert factory("ewc") is METHODS["ewc"].factory
    assert factory("jaxcl.strategies.ewc:ewc") is METHODS["ewc"].factory
    for name, what in (
        ("nosuch", "unknown strategy 'nosuch'; known: agem"),
        ("jaxcl.nosuch:f", "cannot be imported"),
        ("jaxcl.strategies.ewc:nosuch", "cannot be imported"),
        ("jaxcl.strategies.ewc:FISHERS", "not a factory"),
    ):
        with pytest.raises(ValueError, match=what):
            factory(name)


def test_unknown_settings_are_named(parts):
    setup = parts("finetune", {})[1]
    with pytest.raises(ValueError, match="lamda.*its settings are: strength"):
        make("ewc", setup, {"strength": 1.0, "lamda": 2})
