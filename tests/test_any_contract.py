"""Every method's contract with any model, dtype, optimizer, scenario: all pairs."""

from itertools import combinations

import chex
import four
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import pairwise
from test_contract import CASES

import jaxcl
from jaxcl.strategies import make
from jaxcl.testing.loop import step_of

BATCH, STEPS = 8, 4
CHOICES = {
    "name": tuple(CASES),
    "dtype": ("float32", "bfloat16"),
    "framework": four.FRAMEWORKS,
    "chained": (False, True),
    "scenario": ("task", "class"),
    "how": ("injected", "multisteps", "masked"),  # plain: tests/test_contract.py
}
ROWS = pairwise(**CHOICES)
CLOSED = {"ncm", "slda", "random_features", "frozen_ncm", "frozen_slda"}
TRAINED = set(CASES) - CLOSED - {"ol"}


def test_all_pairs_are_there():
    for a, b in combinations(CHOICES, 2):
        met = {(row[a], row[b]) for row in ROWS}
        assert len(met) == len(CHOICES[a]) * len(CHOICES[b])
    assert len(ROWS) < 80  # of 1,824


def optimizer(how):
    if how == "multisteps":
        return optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    if how == "injected":
        return optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)

    def kernels(params):
        return jax.tree.map(lambda a: a.ndim > 1, params)

    decay = optax.masked(optax.add_decayed_weights(1e-2), kernels)
    return optax.chain(decay, optax.sgd(0.1))


def build(row, setup):
    settings = dict(CASES[row["name"]][0])
    if row["name"] in ("gpm", "owm") and row["how"] == "masked":
        settings["where"] = "updates"  # weight decay leaves the subspace
    method = make(row["name"], setup, settings)
    if not row["chained"]:
        return method
    beside = make("lwf" if row["name"] == "ewc" else "ewc", setup, {"strength": 0.1})
    return jaxcl.chain(method, beside)


def data_of(row, dtype):
    rng = np.random.default_rng(0)
    shape = (BATCH * STEPS, four.SIDE, four.SIDE, 1)
    x = jnp.asarray(rng.normal(size=shape), dtype)
    return x, jnp.arange(len(x)) % 2


@pytest.mark.parametrize("row", ROWS, ids=lambda r: "-".join(map(str, r.values())))
def test_every_method_with_any_model(row):
    """One trace; state of fixed shapes and dtypes; updates in the parameters' dtype."""
    dtype = jnp.dtype(row["dtype"])
    net = four.initial("mlp", dtype)
    made = four.framework(row["framework"], "mlp", net, BATCH, scenario=row["scenario"])
    if row["name"] == "hat" and row["scenario"] == "class":
        with pytest.raises(ValueError, match="hat needs the task of every example"):
            build(row, made.setup)
        return
    method = build(row, made.setup)
    tx = jaxcl.transform_optimizer(method, optimizer(row["how"]), made.setup)
    params = jaxcl.init_params(method, jax.random.key(5), made.give(net))
    if row["name"] == "si" and row["how"] == "multisteps":
        with pytest.raises(ValueError, match="optax.MultiSteps makes one of several"):
            tx.init(params)
        return
    opt_state = tx.init(params)
    loss, traces = jaxcl.transform_loss(method, made.setup), []

    def step(params, opt_state, ctx):
        traces.append(1)
        grads, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        updates, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
        alike = jax.tree.map(lambda u, p: u.dtype == p.dtype, updates, params)
        assert all(jax.tree.leaves(alike)), alike
        return optax.apply_updates(params, updates), opt_state

    def end(params, opt_state, target, task):
        data = jaxcl.array_data(x, target, task)
        return jaxcl.after_task(method, params, opt_state, data, task=task)

    step, end = jax.jit(step, donate_argnums=(0, 1)), jax.jit(end)
    x, y = data_of(row, dtype)
    x, first = made.inputs(x), jax.tree.map(jax.typeof, (params, opt_state))
    for task in range(four.TASKS):
        target, before = y + 2 * task, made.take(params.net)
        before, cache = jax.tree.map(np.array, before), ()
        if row["name"] == "pca":  # the others can do without
            data = jaxcl.array_data(x, target, task)
            cache = jaxcl.before_task(method, params, opt_state, data, task=task)
        for i in range(STEPS):
            rows = slice(i * BATCH, (i + 1) * BATCH)
            given = {"step": i, "cache": cache} | step_of(0)
            ctx = jaxcl.context(x[rows], target[rows], task=task, **given)
            params, opt_state = step(params, opt_state, ctx)
        chex.assert_trees_all_equal_shapes_and_dtypes(first, (params, opt_state))
        after = made.take(params.net)
        moved = np.asarray(after["head"]["kernel"] != before["head"]["kernel"]).any(0)
        # OL trains its layers first, and heads in closed form are not trained at all.
        if row["name"] in TRAINED:
            assert moved[2 * task : 2 * task + 2].all()
        params, opt_state = end(params, opt_state, target, task)
        chex.assert_trees_all_equal_shapes_and_dtypes(first, (params, opt_state))
    chex.assert_tree_all_finite(params.net)
    assert len(traces) == 1
    kept = jax.tree.leaves(opt_state.strategy)
    floats = {a.dtype for a in kept if jnp.issubdtype(a.dtype, jnp.floating)}
    if row["name"] in ("ewc", "si", "mas", "gpm", "owm", "hat") and not row["chained"]:
        assert floats == {jnp.dtype("float32")}
