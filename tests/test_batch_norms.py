"""Normalisation by the batch: a BatchNorm per task, and batches too small for one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.nn import layers, models
from jaxcl.training.problem import validate

TASKS, CHANNELS = 3, 4


def paper_step(stats, x, task):
    """Running statistics and output of a training batch, in float64."""
    x, b = np.asarray(x, np.float64), len(x)
    mean, var = (np.array(s, np.float64) for s in stats)
    y = np.empty_like(x)
    for t in range(TASKS):
        own = x[task == t]
        if len(own) == 0:
            continue
        rows = own.reshape(-1, CHANNELS)
        m, v = (rows.mean(0), rows.var(0)) if len(own) > 1 else (mean[t].copy(), var[t])
        y[task == t] = (own - m) / np.sqrt(v + 1e-5)
        kept = 0.9 ** (len(own) / b)
        mean[t] = kept * mean[t] + (1 - kept) * rows.mean(0)
        if len(own) > 1:
            var[t] = kept * var[t] + (1 - kept) * rows.var(0, ddof=1)
    return (mean, var), y


@pytest.mark.parametrize("inner", [(), (3, 2)], ids=["dense", "conv"])
def test_running_statistics_move_by_a_tasks_share_of_the_batch(inner):
    norm, rng = layers.TaskBatchNorm(TASKS), np.random.default_rng(0)
    batches = [(10, [0] * 10), (10, [0] * 7 + [1] * 3), (8, [2, 0, 0, 1, 1, 1, 1, 1])]
    first = jnp.zeros((1, *inner, CHANNELS))
    variables = norm.init(jax.random.key(0), first, jnp.zeros(1, jnp.int32), False)
    expected = (np.zeros((TASKS, CHANNELS)), np.ones((TASKS, CHANNELS)))
    for size, tasks in batches:
        task = rng.permutation(tasks)
        x = (2 + 3 * rng.normal(size=(size, *inner, CHANNELS))).astype(np.float32)
        y, new = norm.apply(variables, x, task, True, mutable=["batch_stats"])
        expected, want = paper_step(expected, x, task)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        stats = new["batch_stats"]
        np.testing.assert_allclose(stats["mean"], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats["var"], expected[1], rtol=1e-5)
        variables = {**variables, **new}


def test_one_example_moves_no_variance_and_is_normalised_by_the_running():
    norm, rng = layers.TaskBatchNorm(2), np.random.default_rng(1)
    x = rng.normal(3, 2, (6, CHANNELS)).astype(np.float32)
    task = np.array([0, 0, 0, 0, 0, 1])
    stats = {
        "mean": jnp.asarray(rng.normal(size=(2, CHANNELS)), jnp.float32),
        "var": jnp.asarray(rng.uniform(1, 3, (2, CHANNELS)), jnp.float32),
    }
    params = norm.init(jax.random.key(0), x, task, False)["params"]
    variables = {"params": params, "batch_stats": stats}
    y, new = norm.apply(variables, x, task, True, mutable=["batch_stats"])
    evaluated = norm.apply(variables, x, task, False)
    np.testing.assert_array_equal(y[5], evaluated[5])
    np.testing.assert_array_equal(new["batch_stats"]["var"][1], stats["var"][1])
    moved = new["batch_stats"]["mean"][1] - stats["mean"][1]
    share = 1 - 0.9 ** (1 / 6)
    np.testing.assert_allclose(moved, share * (x[5] - stats["mean"][1]), rtol=1e-4)


@pytest.mark.parametrize("own", [0, 1, 2, 10])
def test_the_running_variance_tends_to_the_datas_however_few_come_by(own):
    """A batch of ten has a binomial number of task 0's examples, `own` on average."""
    norm, rng = layers.TaskBatchNorm(2), np.random.default_rng(own)
    example = jnp.zeros((10, 200))
    zeros = jnp.zeros(10, jnp.int32)
    variables = norm.init(jax.random.key(0), example, zeros, False)
    update = jax.jit(lambda v, x, t: norm.apply(v, x, t, True, mutable=["batch_stats"]))
    for _ in range(1000):
        task = (rng.uniform(size=10) >= own / 10).astype(np.int32)
        x = rng.normal(1, 2, (10, 200)).astype(np.float32)
        variables = {**variables, **update(variables, x, task)[1]}
    stats = variables["batch_stats"]
    if own == 0:
        assert (stats["mean"][0] == 0).all() and (stats["var"][0] == 1).all()
    else:
        np.testing.assert_allclose(stats["var"][0].mean() / 4, 1, atol=0.05)
        np.testing.assert_allclose(stats["mean"][0].mean(), 1, atol=0.05)


def test_normalising_a_batch_of_one_is_refused_by_name(problem):
    def at(norm, **fields):
        return problem(
            model=lambda k: models.MLP((8,), k, norm=norm, num_tasks=3), **fields
        )

    for norm in ("batch", "batch_current", "batch_per_task"):
        with pytest.raises(ValueError, match=f"batch_size .*'{norm}'.*got 1"):
            validate(at(norm, plan=dict(batch_size=1)))
        with pytest.raises(ValueError, match="training examples .*got 1"):
            validate(at(norm, train_per_task=1, valid_fraction=0.0))
        validate(at(norm, plan=dict(batch_size=2)))
    with pytest.raises(ValueError, match="eval_batch_size .*'batch_current'.*got 1"):
        validate(at("batch_current", plan=dict(eval_batch_size=1)))
    for norm in ("none", "group", "layer"):
        validate(at(norm, plan=dict(batch_size=1, eval_batch_size=1)))
    validate(at("batch", plan=dict(eval_batch_size=1)))
