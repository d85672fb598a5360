"""PCA as the extractor: components as NumPy's, and only the heads are trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from states import after_each_task

import jaxcl
from jaxcl.nn import models
from jaxcl.strategies import pca
from jaxcl.strategies.pca import components


def test_components_equal_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 12)) @ rng.normal(size=(12, 12)) + 3
    data = jaxcl.array_data(jnp.asarray(x, jnp.float32), jnp.arange(70) % 2, 0)
    found = jax.jit(lambda: components(data, 12, 5, 32))()
    mean = x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    values, vectors = values[::-1][:5], vectors[:, ::-1][:, :5]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    # Up to sign.
    cosine = np.abs(np.sum(np.asarray(found.components) * vectors, 0))
    np.testing.assert_allclose(cosine, 1, atol=1e-4)
    np.testing.assert_allclose(found.scale**2, values.mean(), rtol=1e-4)
    features = (x - mean) @ np.asarray(found.components) / float(found.scale)
    np.testing.assert_allclose(features.var(0).mean(), 1, rtol=1e-3)


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
def test_components_are_the_first_tasks_and_heads_alone_train(problem, seed_mode):
    p = problem("pca", seeds=(0, 1), seed_mode=seed_mode)
    first, *_, last = after_each_task(p)
    for name in ("mean", "components"):
        a, b = (getattr(s.strategy_state, name) for s in (first, last))
        np.testing.assert_array_equal(a, b)
    assert last.strategy_state.ready.all()
    stream = p.stream
    for seed in range(2):
        mine = jax.tree.map(lambda leaf: leaf[seed], stream.per_seed)  # noqa: B023
        data = stream.view(stream.base, mine, "train", 0)
        x = np.asarray(data.take(np.arange(int(data.size))).x, np.float64)
        mean = last.strategy_state.mean[seed]
        np.testing.assert_allclose(mean, x.reshape(len(x), -1).mean(0), atol=1e-5)
    nets = [s.params.net for s in (first, last)]
    moved = [np.any(n["head"]["kernel"] != nets[0]["head"]["kernel"]) for n in nets]
    assert moved == [False, True]
    same = [n["hidden_0"]["kernel"] for n in nets]
    np.testing.assert_array_equal(*same)


def test_validation_in_the_first_task_sees_the_components(problem):
    from jaxcl.training import protocol

    events = protocol.run(problem("pca", seeds=(0,), plan={"epochs": 6}))
    epochs = [e for e in events if isinstance(e, protocol.EpochDone)]
    assert float(epochs[5].metrics.valid_accuracy[0]) > 0.8


def test_what_pca_refuses():
    setup = jaxcl.setup_for_linen(
        models.MLP((7,), 4),
        jax.ShapeDtypeStruct((8, 6), jnp.float32),
        num_outputs=4,
        num_tasks=2,
        heads=(("head",),),
        scenario="task",
    )
    with pytest.raises(ValueError, match="reads 7 features, more than the 6 numbers"):
        pca(setup)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        pca(setup, chunk=0)
