"""Means and covariance in one pass, and heads in closed form, compared with float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.features import accuracy, lda
from jaxcl.ops import discriminant as D

CLASSES = 4


def examples(rng, n=300, d=12, spread=1.0, offset=5.0):
    """Classes of unequal size, with correlated features far from 0."""
    y = rng.choice(CLASSES, size=n, p=(0.5, 0.3, 0.15, 0.05)).astype(np.int32)
    mix = rng.normal(size=(d, d)) * np.logspace(0, -2, d)
    x = rng.normal(size=(CLASSES, d))[y] + rng.normal(size=(n, d)) @ mix
    return (spread * (x + offset)).astype(np.float32), y


def batch_lda(x, y, shrinkage):
    """From all data at once, in float64: W, b, the classes' means from the centre."""
    x = x.astype(np.float64)
    seen, place = np.unique(y, return_inverse=True)
    mean = np.stack([x[y == k].mean(0) for k in seen])
    rest = x - mean[place]
    a = (1 - shrinkage) * rest.T @ rest / len(x) + shrinkage * np.eye(x.shape[1])
    centred = mean - x.mean(0)
    weights = np.linalg.inv(a) @ centred.T
    return weights, -0.5 * (centred * weights.T).sum(1), x.mean(0), rest.T @ rest


def one_by_one(x, y):
    """Welford's update for each class, float64: counts, means, within-class scatter."""
    d = x.shape[1]
    count, mean = np.zeros(CLASSES), np.zeros((CLASSES, d))
    scatter = np.zeros((d, d))
    for row, k in zip(x.astype(np.float64), y, strict=True):
        away = row - mean[k]
        scatter += count[k] / (count[k] + 1) * np.outer(away, away)
        mean[k] += away / (count[k] + 1)
        count[k] += 1
    return count, mean, scatter


def official(x, y):
    """Deviations weighted as in the official code: by the count of all examples."""
    d = x.shape[1]
    count, mean, sigma = np.zeros(CLASSES), np.zeros((CLASSES, d)), np.zeros((d, d))
    for n, (row, k) in enumerate(zip(x.astype(np.float64), y, strict=True)):
        away = row - mean[k]
        sigma = (n * sigma + np.outer(away, away) * n / (n + 1)) / (n + 1)
        mean[k] += away / (count[k] + 1)
        count[k] += 1
    return mean, sigma


@jax.jit
def absorb(state, x, y, weight):
    means, scatter = state
    means, rows = D.absorb(means, x, y, weight)
    return means, scatter + D.whole_gram(D.half_gram(rows))


@pytest.mark.parametrize("d", [1, 5, 8, 37])
def test_the_half_of_a_gram_matrix_is_enough(d):
    z = np.random.default_rng(7).normal(size=(9, d)).astype(np.float32)
    whole = np.asarray(D.whole_gram(D.half_gram(jnp.asarray(z))))
    np.testing.assert_allclose(whole, z.T.astype(np.float64) @ z, atol=1e-5)
    np.testing.assert_array_equal(whole, whole.T)


def streamed(x, y, size):
    state = (D.no_means(CLASSES, x.shape[1]), jnp.zeros((x.shape[1],) * 2))
    for i in range(0, len(x), size):
        rows = np.arange(i, i + size) % len(x)  # padded from the start
        weight = (np.arange(i, i + size) < len(x)).astype(np.float32)
        state = absorb(state, x[rows], y[rows], weight)
    return state


@pytest.mark.parametrize("size", [1, 7, 64, 512])
@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_a_stream_of_batches_equals_welford_and_all_at_once(size, order):
    x, y = examples(np.random.default_rng(0))
    if order == "sorted":  # class by class, as in a stream of tasks
        x, y = x[np.argsort(y, kind="stable")], np.sort(y)
    means, scatter = streamed(x, y, size)
    count, mean, within = one_by_one(x, y)
    np.testing.assert_array_equal(means.count, count)
    np.testing.assert_allclose(means.mean, mean, atol=2e-6 * np.abs(mean).max())
    np.testing.assert_allclose(scatter, within, atol=1e-5 * np.abs(within).max())
    np.testing.assert_allclose(within, batch_lda(x, y, 0.1)[3], rtol=1e-9, atol=1e-9)
    # The official weights give the same means but another covariance.
    _, sigma = official(x, y)
    assert np.abs(sigma * len(x) - within).max() > 1e-2 * np.abs(within).max()


@pytest.mark.parametrize("shrinkage", [1e-4, 1e-2, 1.0])
def test_the_discriminant_equals_batch_lda(shrinkage):
    x, y = examples(np.random.default_rng(1), n=2000)
    head = jax.jit(D.discriminant)(*streamed(x, y, 256), shrinkage)
    weights, bias, centre, _ = batch_lda(x, y, shrinkage)
    error = np.linalg.norm(head.weights - weights) / np.linalg.norm(weights)
    assert error < 1e-3
    np.testing.assert_allclose(head.centre, centre, rtol=1e-5)
    given = np.asarray(D.logits(head, x))
    wanted = (x - centre) @ weights + bias
    np.testing.assert_allclose(given, wanted, atol=1e-3 * np.abs(wanted).max())
    assert (given.argmax(1) == wanted.argmax(1)).mean() >= 0.999


def test_it_is_the_gaussian_rule():
    """Differences of logits equal those of −½ (x − m)ᵀ A⁻¹ (x − m), uncentred."""
    x, y = examples(np.random.default_rng(2), n=400)
    means, scatter = streamed(x, y, 64)
    given = np.asarray(D.logits(D.discriminant(means, scatter, 0.3), x), np.float64)
    a = 0.7 * np.asarray(scatter, np.float64) / len(x) + 0.3 * np.eye(x.shape[1])
    away = x[:, None].astype(np.float64) - np.asarray(means.mean, np.float64)
    rule = -0.5 * np.einsum("nkd,de,nke->nk", away, np.linalg.inv(a), away)
    np.testing.assert_allclose(
        given - given[:, :1], rule - rule[:, :1], rtol=1e-4, atol=1e-4
    )


def test_more_features_than_examples_on_any_scale():
    """Σ is singular, and ε below its rounding error: A is still positive definite."""
    rng = np.random.default_rng(3)
    for spread in (1e-3, 1.0, 1e3):
        x, y = examples(rng, n=30, d=80, spread=spread, offset=0.0)
        means, scatter = streamed(x, y, 8)
        head = D.discriminant(means, scatter, 1e-4)
        assert all(np.isfinite(leaf).all() for leaf in head)
        seen = np.unique(y)
        covariance = one_by_one(x, y)[2] / len(x)
        ridge = max(1e-4, 8 * np.finfo(np.float32).eps * np.trace(covariance))
        a = (1 - 1e-4) * covariance + ridge * np.eye(80)
        centred = np.asarray(means.mean, np.float64) - np.asarray(head.centre)
        weights = np.linalg.solve(a, centred.T)[:, seen]
        error = np.linalg.norm(head.weights[:, seen] - weights)
        assert error < 1e-3 * np.linalg.norm(weights)


@pytest.mark.parametrize(
    "n, d, most", [(5, 300, 2e-2), (10, 300, 2e-2), (50, 500, 2e-2), (5000, 100, 1e-3)]
)
def test_the_solution_is_as_exact_as_said(n, d, most):
    """Against float64 with the same scatter; features of unequal scales."""
    rng = np.random.default_rng(4)
    x, y = examples(rng, n=n, d=d, offset=0.0)
    x = (x * np.geomspace(0.1, 10, d)).astype(np.float32)
    means, scatter = streamed(x, y, n)
    head = D.discriminant(means, scatter, 1e-4)
    covariance = np.asarray(scatter, np.float64) / n
    ridge = max(1e-4, 8 * np.finfo(np.float32).eps * np.trace(covariance))
    a = (1 - 1e-4) * covariance + ridge * np.eye(d)
    centred = np.asarray(means.mean, np.float64) - np.asarray(head.centre, np.float64)
    weights, seen = np.linalg.solve(a, centred.T), np.unique(y)
    for k in seen:
        error = np.linalg.norm(head.weights[:, k] - weights[:, k])
        assert error < most * np.linalg.norm(weights[:, k]), (k, error)


def test_the_probe_is_all_examples_at_once():
    x, y = examples(np.random.default_rng(8), n=500)
    x, y = x[y != 2], y[y != 2]
    probe = lda(jnp.asarray(x), jnp.asarray(y), num_classes=CLASSES, shrinkage=0.01)
    weights, bias, centre, _ = batch_lda(x, y, 0.01)
    scores = (x - centre) @ weights + bias
    given = np.asarray(x @ probe.weights + probe.bias)
    np.testing.assert_array_equal(given.argmax(1), np.unique(y)[scores.argmax(1)])
    assert abs(accuracy(probe, x, y) - (given.argmax(1) == y).mean()) < 1e-6
    with pytest.raises(ValueError, match="same examples, got 3 and 2"):
        lda(jnp.ones((3, 2)), jnp.zeros(2, int), num_classes=2)


def test_the_nearest_mean():
    x, y = examples(np.random.default_rng(4))
    means, _ = streamed(x, y, 50)
    given = np.asarray(D.logits(D.nearest_mean(means), x))
    mean = np.stack([x[y == k].mean(0, dtype=np.float64) for k in range(CLASSES)])
    distance = ((x[:, None] - mean) ** 2).sum(-1)
    np.testing.assert_array_equal(given.argmax(1), distance.argmin(1))
    np.testing.assert_allclose(
        given - given[:, :1], -0.5 * (distance - distance[:, :1]), rtol=1e-3, atol=1e-3
    )


def test_a_class_never_seen_is_never_answered():
    x, y = examples(np.random.default_rng(5))
    x, y = x[y != 1], y[y != 1]
    state = streamed(x, y, 64)
    far = -100 * np.abs(x)
    for head in (D.discriminant(*state, 1e-4), D.nearest_mean(state[0])):
        given = np.asarray(D.logits(head, np.concatenate([x, far])))
        assert np.isfinite(given).all() and (given.argmax(1) != 1).all()


def test_nothing_seen_gives_finite_logits():
    nothing = (D.no_means(CLASSES, 3), jnp.zeros((3, 3)))
    for head in (D.discriminant(*nothing, 1e-4), D.nearest_mean(nothing[0])):
        assert np.isfinite(D.logits(head, jnp.ones((2, 3)))).all()


@pytest.mark.parametrize("shrinkage", [0.0, -1.0, 1.5])
def test_a_shrinkage_out_of_range_is_refused(shrinkage):
    with pytest.raises(ValueError, match=rf"lie in \(0, 1\], got {shrinkage}"):
        D.discriminant(D.no_means(2, 3), jnp.eye(3), shrinkage)


def test_lapack_is_given_one_matrix_at_a_time():
    """Under vmap, as for seeds side by side; a batch can hang a CPU of two devices."""
    state = (D.no_means(CLASSES, 6), jnp.zeros((6, 6)))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), state)
    solve = jax.vmap(lambda means, s: D.discriminant(means, s, 0.1))
    text = jax.jit(solve).lower(*many).as_text()
    calls = [line for line in text.splitlines() if "@lapack_" in line]
    assert len(calls) >= 2
    assert not [line for line in calls if "tensor<3x" in line]


def test_seeds_side_by_side_on_two_devices_end():
    """LAPACK on batches inside shard_map used to hang on a CPU of two devices."""
    from jaxcl.training.seeds import SeedMesh

    mesh = SeedMesh(8, "vmap")
    rng = np.random.default_rng(6)
    x = rng.normal(size=(8, 400, 200)).astype(np.float32)
    run = mesh.over_seeds(
        lambda _, x, shared: (
            D.discriminant(
                D.ClassMeans(jnp.full(2, 200.0), x[:2]), x.T @ x, 1e-2
            ).weights
        ),
        "solve",
    )
    given = mesh.gather(run((), mesh.spread(x), ()))
    for weights, one in zip(given, x.astype(np.float64), strict=True):
        a = 0.99 * one.T @ one / 400 + 0.01 * np.eye(200)
        centred = one[:2] - one[:2].mean(0)
        wanted = np.linalg.solve(a, centred.T)
        assert np.linalg.norm(weights - wanted) < 1e-3 * np.linalg.norm(wanted)
