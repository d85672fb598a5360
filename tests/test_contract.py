"""The contract suite for every registered strategy, over a table of factories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl.nn import models
from jaxcl.ops.trees import tree_copy
from jaxcl.strategies import METHODS, factory, make, strategy_name
from jaxcl.testing import StrategyContract
from jaxcl.training import protocol
from jaxcl.training.problem import make_setup

# Name -> settings with an effect, and settings at which a step equals BP's.
CASES: dict[str, tuple[dict, dict | None]] = {
    "finetune": ({}, {}),
    "frozen": ({}, None),
    "ewc": ({"strength": 3.0}, {"strength": 0.0}),
    "gpm": ({"threshold": 0.9, "samples": 20}, None),
    "owm": ({"alpha": 0.1}, None),
    "si": ({"strength": 1.0}, {"strength": 0.0}),
    "mas": ({"strength": 1.0, "samples": 20}, {"strength": 0.0}),
    "lwf": ({}, {"strength": 0.0}),
    # With a memory the reference gradient decides: no setting makes it BP.
    "agem": ({"per_class": 2, "batch_size": 4}, None),
    "er": ({"capacity": 20, "batch_size": 4}, {}),
    "derpp": ({"capacity": 20, "batch_size": 4}, {"alpha": 0.0, "beta": 0.0}),
    "hat": ({"strength": 0.75}, None),
    "ol": ({"extractor": 0.5}, None),
    "pca": ({"chunk": 32}, None),
    "ncm": ({"chunk": 16}, {}),
    "slda": ({"chunk": 16}, {}),
    "random_features": ({"chunk": 16, "width": 20}, {}),
    "frozen_ncm": ({"chunk": 16}, None),
    "frozen_slda": ({"chunk": 16}, None),
}


def test_every_strategy_is_in_the_table():
    assert set(CASES) == {strategy_name(method) for method in METHODS.values()}


# Each class inherits the suite; pytest collects them under their own names.
for _name, (_settings, _neutral) in CASES.items():
    _of = {
        "factory": staticmethod(factory(_name)),
        "settings": _settings,
        "neutral": _neutral,
    }
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (StrategyContract,), _of)


def _twice(loss_fn, state):
    return lambda params, ctx: jax.tree.map(lambda a: 2 * a, loss_fn(params, ctx))


def _becomes(new):
    return lambda params, state, **task: (params, new(params))


@pytest.mark.parametrize(
    "hooks, test, told",
    [
        (dict(init=lambda params: params.net), "no_buffer_is_held_twice", "copy it"),
        (
            dict(
                init=lambda params: tree_copy(params.net),
                after_task=_becomes(lambda params: params.net),
            ),
            *("no_buffer_is_held_twice", "copy it"),
        ),
        (
            dict(
                init=lambda params: jnp.zeros(3),
                after_task=_becomes(lambda params: jnp.zeros(4)),
            ),
            *("the_state_tree_is_stable", r"was float32\[3\] and is float32\[4\]"),
        ),
        (
            dict(
                init=lambda params: jnp.zeros(()),
                after_task=_becomes(lambda params: jnp.asarray(1.0)),  # weakly typed
            ),
            *("the_state_tree_is_stable", "traced > 1"),
        ),
        (dict(loss=_twice), "a_neutral_setting_is_bp", "not approximately equal"),
    ],
    ids=["aliased", "aliased after a task", "grows", "retraces", "not neutral"],
)
def test_the_suite_finds_what_is_wrong(hooks, test, told):
    class Broken(StrategyContract):
        factory = staticmethod(lambda setup: jaxcl.strategy(**hooks))
        neutral = {}

    with pytest.raises((AssertionError, ValueError), match=told):
        getattr(Broken(), f"test_{test}")()


def test_a_steps_default_key_is_its_own():
    x, y = jnp.zeros((2, 3)), jnp.zeros(2, int)
    moments = [
        (seed, task, step) for seed in (0, 1, 7) for task in (0, 1) for step in (0, 1)
    ]
    data = set()
    for seed, task, step in moments:
        key = jaxcl.context(x, y, seed=seed, task=task, step=step).key
        assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        data.add(tuple(np.asarray(jax.random.key_data(key)).tolist()))
    assert len(data) == len(moments)
    given = jax.random.key(5)
    assert jaxcl.context(x, y, task=3, key=given).key == given


@pytest.fixture
def small_setup(problem):
    p = problem()
    return make_setup(p.model, p.stream, 8)


def test_frozen_moves_heads_only_after_task_one(problem, small_setup):
    setup = small_setup
    net, _ = jaxcl.nn.capture.init_fn(problem().model, setup.example)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    y = jnp.arange(8) % 2
    method = make("frozen", setup, {})
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
    gradient = jax.grad(jaxcl.transform_loss(method, setup), has_aux=True)
    params = jaxcl.init_params(method, jax.random.key(2), net)

    @jax.jit
    def step(task):
        opt_state = tx.init(params)
        ctx = jaxcl.context(x, y + 2 * task, task=task, step=1)
        grads, out = gradient(params, opt_state.strategy, ctx)
        updates, _ = tx.update(grads, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, updates).net

    def moved(new, layer):
        return not np.array_equal(new[layer]["kernel"], net[layer]["kernel"])

    before, after = step(0), step(1)
    assert moved(before, "hidden_0") and moved(before, "head")
    assert not moved(after, "hidden_0") and moved(after, "head")


def test_frozen_keeps_statistics(problem):
    """With running BatchNorm and momentum, tasks 2 and 3 keep task 1's output."""
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


def test_frozen_needs_heads(small_setup):
    with pytest.raises(ValueError, match="heads"):
        make("frozen", small_setup._replace(heads=()), {})


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


def test_unknown_settings_are_named(small_setup):
    with pytest.raises(ValueError, match="lamda.*its settings are: strength"):
        make("ewc", small_setup, {"strength": 1.0, "lamda": 2})
