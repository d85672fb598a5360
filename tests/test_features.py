"""Measures of features compared with float64 NumPy versions of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxcl import features

RTOL = 1e-4
# The rounding error of float32 for a quantity that is exactly 0.
ATOL = 1e-5


def _inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def of_rank(rank, n, d):
        # Small integers: the rank is exact in float32 too.
        return rng.integers(-9, 10, (n, rank)) @ rng.integers(-9, 10, (rank, d))

    found = {
        "random": rng.normal(size=(300, 40)) + 0.5,
        "relu": np.maximum(rng.normal(size=(300, 40)) - rng.uniform(0, 4, 40), 0),
        "constant": np.full((50, 20), 0.3),
        "rank 1": of_rank(1, 1000, 400),
        "rank 5": of_rank(5, 200, 60),
        "zero": np.zeros((50, 20)),
        "N < D": rng.normal(size=(30, 200)),
        "N = 4": rng.normal(size=(4, 10)),
        "D = 1": rng.normal(size=(60, 1)),
        "small": 1e-12 * rng.normal(size=(60, 8)),
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


INPUTS = _inputs()
every_input = pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)


def sigma_of(x):
    s = np.linalg.svd(np.float64(x), compute_uv=False)
    return np.where(s > 1e-10 * s[0], s, 0)


@every_input
def test_effective_rank(x):
    s = sigma_of(x)
    p = s[s > 0] / s.sum()
    expected = np.exp(-np.sum(p * np.log(p))) if s[0] > 0 else 0
    np.testing.assert_allclose(features.effective_rank(x), expected, RTOL)


@every_input
def test_stable_rank(x):
    s = sigma_of(x)
    expected = np.sum(s**2) / s[0] ** 2 if s[0] > 0 else 0
    np.testing.assert_allclose(features.stable_rank(x), expected, RTOL)


@every_input
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_energy_rank(x, share):
    s = sigma_of(x)
    held = np.cumsum(s**2)
    expected = next(
        (k for k in range(1, len(s) + 1) if held[k - 1] >= share * held[-1]), 0
    )
    assert features.energy_rank(x, share) == (expected if s[0] > 0 else 0)
    assert np.isnan(features.energy_rank(jnp.asarray(x).at[0].set(jnp.nan), share))


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_drift_and_noise_do_not_depend_on_the_scale(size):
    x = jax.random.normal(jax.random.key(0), (20, 5))
    assert features.feature_drift(size * x, 2 * size * x) == pytest.approx(1)
    kept = [
        features.noise_kept(lambda v, s=s: s * v, x, jax.random.key(1), scale=0.1)
        for s in (1.0, size)
    ]
    assert kept[1].features == pytest.approx(float(kept[0].features), rel=1e-5)


def test_a_probe_of_features_that_are_not_finite_has_no_accuracy():
    x, y = jnp.full((6, 3), jnp.nan), jnp.array([0, 0, 0, 0, 1, 2])
    probe = features.ncm(x, y, num_classes=3)
    assert np.isnan(features.accuracy(probe, x, y))
    sound = features.ncm(jnp.eye(6, 3), y, num_classes=4)  # one class has no examples
    assert np.isfinite(features.accuracy(sound, jnp.eye(6, 3), y))


@every_input
def test_dormant_share(x):
    answer = np.abs(np.float64(x)).mean(axis=0)
    score = answer / answer.mean() if answer.mean() > 0 else answer
    expected = np.mean(score <= 0.025)
    np.testing.assert_allclose(features.dormant_share(x), expected, RTOL)


def test_some_units_are_dormant_and_some_are_not():
    assert 0.1 < features.dormant_share(INPUTS["relu"]) < 0.9
    maps = np.zeros((6, 2, 2, 4), np.float32)
    maps[..., 1] = maps[0, 1, 1, 3] = 1.0  # 3 answers to 1 of 24: 0.04 of 0.26 is 0.16
    assert features.dormant_share(maps) == 0.5
    assert features.dormant_share(maps, threshold=0.2) == 0.75


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e36])
@pytest.mark.parametrize("name", ["random", "relu", "constant"])
def test_ranks_and_dormant_units_do_not_depend_on_the_scale(name, size):
    x = INPUTS[name] / np.abs(INPUTS[name]).max()
    for measure in (*features.ranks(x)._fields, "dormant"):
        of = {"dormant": features.dormant_share, "effective": features.effective_rank}
        of |= {"stable": features.stable_rank, "energy": features.energy_rank}
        found = of[measure](np.float32(size) * x)
        np.testing.assert_allclose(found, of[measure](x), 1e-4)


def test_the_rank_of_rank_one_is_one_where_a_gram_matrix_would_say_more():
    rng = np.random.default_rng(9)
    x = np.float32(rng.normal(size=(1000, 1)) * rng.normal(size=400))
    by_gram = np.sqrt(np.maximum(np.linalg.eigvalsh(x.T @ x), 0))
    p = by_gram[by_gram > 0] / by_gram.sum()
    assert np.exp(-np.sum(p * np.log(p))) > 1.02
    assert abs(features.effective_rank(x) - 1) < 5e-5


def test_convolutional_features_are_flattened():
    x = INPUTS["random"].reshape(300, 2, 5, 4)
    flat = features.effective_rank(INPUTS["random"])
    assert features.effective_rank(x) == flat


def hsic(k, u):
    """Song et al. 2012, equation 4, term by term."""
    n = len(k)
    k, u = k - np.diag(np.diag(k)), u - np.diag(np.diag(u))
    one = np.ones(n)
    a = np.trace(k @ u)
    b = (one @ k @ one) * (one @ u @ one) / ((n - 1) * (n - 2))
    c = 2 / (n - 2) * (one @ k @ u @ one)
    return (a + b - c) / (n * (n - 3))


def cka_of(x, y, debiased):
    x, y = np.float64(x), np.float64(y)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    k, u = x @ x.T, y @ y.T
    if debiased:
        parts = hsic(k, u), hsic(k, k), hsic(u, u)
    else:
        parts = tuple(np.trace(a @ b) for a, b in ((k, u), (k, k), (u, u)))
    # For a constant, float64 leaves about 1e-30 too.
    scale = (np.square(k).max(), np.square(u).max())
    if parts[1] <= 1e-12 * scale[0] or parts[2] <= 1e-12 * scale[1]:
        return 0.0
    if max(np.abs(x).max(), np.abs(y).max()) < 1e-15:
        return 0.0
    return parts[0] / np.sqrt(parts[1]) / np.sqrt(parts[2])


@every_input
@pytest.mark.parametrize("debiased", [False, True])
def test_linear_cka(x, debiased):
    rng = np.random.default_rng(1)
    constant = np.ptp(x, axis=0).max() == 0
    mixed = x @ rng.normal(size=(x.shape[1], 7))
    other = mixed + np.float32(np.abs(x).max()) * rng.normal(size=mixed.shape)
    for y in (x, mixed.astype(np.float32), other.astype(np.float32)):
        expected = 0.0 if constant else cka_of(x, y, debiased)
        found = features.linear_cka(x, y, debiased=debiased)
        np.testing.assert_allclose(found, expected, RTOL, ATOL)


def test_cka_does_not_see_a_large_mean():
    """Of features 300 spreads away from 0, whose mean float32 rounds."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 2000))
    y = np.float32(x + rng.normal(size=x.shape) + 300)
    x = np.float32(x + 300)
    found = features.linear_cka(x, y, debiased=True)
    np.testing.assert_allclose(found, cka_of(x, y, True), 2e-5)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_does_not_see_rotations_and_scales(debiased):
    x = INPUTS["random"]
    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))
    for y in (x @ q, 1e-3 * x, -1e6 * (x @ q)):
        found = features.linear_cka(x, np.float32(y), debiased=debiased)
        np.testing.assert_allclose(found, 1, 1e-5)


def test_debiased_cka_of_features_with_nothing_in_common_is_zero():
    def draws(debiased):
        found = []
        for seed in range(20):
            x, y = np.random.default_rng(seed).normal(size=(2, 200, 500))
            found.append(features.linear_cka(x, y, debiased=debiased))
        return np.mean(found)

    assert abs(draws(True)) < 0.02
    assert 0.65 < draws(False) < 0.75


def _classes(x, num_classes=3):
    return np.arange(len(x)) % num_classes


def _held(x):
    rng = np.random.default_rng(3)
    noise = np.abs(x).max() * 0.1 * rng.normal(size=x.shape)
    return (x + noise).astype(np.float32)


def ridge_of(x, y, strength):
    x, target = np.float64(x), np.eye(3)[y]
    mean_x, mean_y = x.mean(axis=0), target.mean(axis=0)
    c = x - mean_x
    unit = np.square(c).sum() / x.shape[1]
    if unit < 1e-25:
        return np.zeros((x.shape[1], 3)), mean_y
    gram = c.T @ c + strength * unit * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, c.T @ (target - mean_y))
    return weights, mean_y - mean_x @ weights


@every_input
def test_ridge_probe(x):
    y, held = _classes(x), _held(x)
    for strength in (1e-3, 1.0):
        probe = features.ridge_probe(
            x, y, held, y, num_classes=3, strengths=(strength,)
        )
        weights, bias = ridge_of(x, y, strength)
        if np.ptp(x, axis=0).max() > 0:
            size = np.abs(weights).max()
            np.testing.assert_allclose(probe.weights, weights, RTOL, RTOL * size)
        scores = np.float64(held) @ weights + bias
        found = np.float64(held) @ probe.weights + probe.bias
        np.testing.assert_allclose(found, scores, RTOL, 1e-4 * np.abs(scores).max())


def test_the_strength_that_does_best_on_held_out_examples_is_taken():
    rng = np.random.default_rng(4)
    # 40 examples in 38 dimensions, one of which tells the classes apart.
    x, held = rng.normal(size=(2, 40, 38)).astype(np.float32)
    y = _classes(x)
    x[:, 0] += 2 * y
    held[:, 0] += 2 * y
    right = []
    for strength in features.probes.STRENGTHS:
        weights, bias = ridge_of(x, y, strength)
        right.append(np.mean((np.float64(held) @ weights + bias).argmax(-1) == y))
    best = [
        s
        for s, r in zip(features.probes.STRENGTHS, right, strict=True)
        if r == max(right)
    ]
    probe = features.ridge_probe(x, y, held, y, num_classes=3)
    assert min(right) < max(right)
    np.testing.assert_allclose(probe.strength, max(best), 1e-6)
    np.testing.assert_allclose(features.accuracy(probe, held, y), max(right), 1e-6)


@pytest.mark.parametrize(
    "name", ["random", "rank 5", "N < D", "N = 4", "D = 1", "zero"]
)
def test_multinomial_probe(name):
    """Its objective reaches the minimum that SciPy finds in float64."""
    x = INPUTS[name]
    y, strength = _classes(x), 0.01
    probe = features.multinomial_probe(
        x, y, x, y, num_classes=3, strengths=(strength,), max_steps=300
    )
    x = np.float64(x)
    mean = x.mean(axis=0)
    scale = np.sqrt(np.square(x - mean).mean()) or 1.0
    z = (x - mean) / scale

    def objective(flat):
        weights, bias = flat[:-3].reshape(-1, 3), flat[-3:]
        logits = z @ weights + bias
        top = logits.max(axis=1, keepdims=True)
        logsum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        loss = np.mean(logsum - logits[np.arange(len(y)), y])
        p = np.exp(logits - logsum[:, None]) - np.eye(3)[y]
        gradient = z.T @ p / len(y) + strength * weights
        value = loss + strength / 2 * np.sum(weights**2)
        return value, np.concatenate([gradient.ravel(), p.mean(axis=0)])

    least = minimize(objective, np.zeros(3 * x.shape[1] + 3), jac=True, tol=1e-10)
    weights = np.float64(probe.weights)
    ours = np.concatenate([(weights * scale).ravel(), probe.bias + mean @ weights])
    value, gradient = objective(ours)
    np.testing.assert_allclose(value, least.fun, RTOL)
    assert np.linalg.norm(gradient) < 1e-4


@every_input
def test_nearest_class_mean(x):
    y, held = _classes(x), _held(x)
    probe = features.ncm(x, y, num_classes=5)
    means = np.stack([np.float64(x)[y == k].mean(axis=0) for k in range(3)])
    distance = np.square(np.float64(held)[:, None] - means).sum(-1)
    scores = np.float64(held) @ probe.weights + probe.bias
    np.testing.assert_allclose(
        scores[:, :3] - scores[:, :1],
        (distance[:, :1] - distance) / 2,
        1e-3,
        1e-5 * np.abs(distance).max(),
    )
    assert scores.argmax(-1).max() < 3, "a class without examples was answered"


def test_representation_forgetting_and_what_share_of_the_gain_is_lost():
    r = np.array([[0.3, 0.4], [0.9, 0.41], [0.6, 0.8]])  # row 0: untrained
    np.testing.assert_allclose(features.representation_forgetting(r), 0.9 - 0.6)
    lost = features.lost_share(r)
    np.testing.assert_allclose(lost, [(0.9 - 0.6) / (0.9 - 0.3), 0])
    r[2, 1] = 0.42  # one point more than before its task: too little to count
    np.testing.assert_array_equal(np.isnan(features.lost_share(r)), [False, True])
    both = np.stack([r, r])
    assert features.lost_share(both).shape == (2, 2)
    assert features.representation_forgetting(both).shape == (2,)
    assert np.isnan(features.representation_forgetting(np.ones((2, 1))))


@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_cosine(scale):
    rng = np.random.default_rng(5)
    a, b = ({"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)} for _ in "ab")
    x, y = (np.concatenate([t["w"].ravel(), t["b"]]) for t in (a, b))
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    small = jax.tree.map(lambda v: jnp.asarray(scale * v, jnp.float32), a)
    np.testing.assert_allclose(features.cosine(small, b), expected, RTOL)
    zero = jax.tree.map(jnp.zeros_like, small)
    assert features.cosine(zero, b) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_cosine_is_at_most_one(seed):
    a = jnp.asarray(np.random.default_rng(seed).normal(size=1000), jnp.float32)
    assert 1 - 1e-6 < features.cosine(a, a) <= 1
    assert -1 <= features.cosine(a, -a) < 1e-6 - 1


def test_drift():
    x, y = INPUTS["random"], INPUTS["relu"]
    expected = np.linalg.norm(np.float64(y) - x) / np.linalg.norm(np.float64(x))
    np.testing.assert_allclose(features.feature_drift(x, y), expected, RTOL)
    moved = features.weight_drift({"a": x, "b": y[0]}, {"a": y, "b": y[0]})
    np.testing.assert_allclose(moved["a"], expected, RTOL)
    assert moved["b"] == 0
    assert np.isnan(features.feature_drift(0 * x, y))


def test_linear_mode_connectivity():
    a, b = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-1.0, 0.5])}

    def loss(params):
        w = params["w"]
        return (w[0] ** 2 - 1) ** 2 + w[1]  # two valleys, at w0 = 1 and w0 = −1

    line = features.loss_along_line(loss, a, b, points=5)
    alpha = np.linspace(0, 1, 5)
    w0 = 1 - 2 * alpha
    np.testing.assert_allclose(line, (w0**2 - 1) ** 2 + 0.5 * alpha, RTOL)
    np.testing.assert_allclose(features.barrier(line), 1, RTOL)
    assert features.barrier(jnp.array([1.0, 0.2, 0.5])) == 0


def test_noise_kept():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(500, 20)).astype(np.float32)
    kernel = rng.normal(size=(20, 3)).astype(np.float32)
    kernel[10:] = 0
    found = features.noise_kept(lambda v: v @ kernel, x, jax.random.key(0), scale=0.1)
    noise = 0.1 * np.float64(jax.random.normal(jax.random.key(0), x.shape))

    def share(a, moved):
        pairs = np.square(a[:, None] - a).sum(-1)
        n = len(a)
        return np.square(moved).sum(1).mean() / (pairs.sum() / (n * (n - 1)))

    x64, kernel = np.float64(x), np.float64(kernel)
    expected = share(x64 @ kernel, noise @ kernel)
    np.testing.assert_allclose(found.features, expected, RTOL)
    np.testing.assert_allclose(found.pixels, share(x64, noise), RTOL)
    still = features.noise_kept(lambda v: 0 * v, x, jax.random.key(0), scale=0.1)
    assert np.isnan(still.features) and not np.isnan(still.pixels)


def test_saliency():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    w = rng.normal(size=(5, 6, 3))

    def score(images):
        return jnp.sum(jnp.asarray(w, jnp.float32) * images**2, axis=(1, 2, 3))

    gradient = features.input_gradient(score, x)
    np.testing.assert_allclose(gradient, 2 * w * np.float64(x), RTOL, 1e-5)
    maps = features.occlusion(score, x, window=2, stride=2, fill=0.5)
    assert maps.shape == (2, 2, 3)
    for b, i, j in np.ndindex(maps.shape):
        covered = np.float64(x[b])
        covered[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 0.5
        expected = np.sum(w * np.float64(x[b]) ** 2) - np.sum(w * covered**2)
        np.testing.assert_allclose(maps[b, i, j], expected, 1e-3, 1e-4)


def test_what_is_not_a_number_is_not_measured_as_zero():
    x = INPUTS["random"].copy()
    x[3, 5] = np.nan
    for measure in (
        features.effective_rank,
        features.stable_rank,
        features.dormant_share,
        lambda x: features.linear_cka(x, INPUTS["random"]),
        lambda x: features.linear_cka(INPUTS["random"], x, debiased=True),
        lambda x: features.cosine(x, INPUTS["random"]),
        lambda x: features.feature_drift(INPUTS["random"], x),
    ):
        assert np.isnan(measure(x))


def test_over_seeds_by_vmap():
    x = np.random.default_rng(8).normal(size=(3, 60, 9)).astype(np.float32)
    y = _classes(x[0])

    def all_of(x):
        probe = features.ridge_probe(x, y, x, y, num_classes=3)
        right = features.accuracy(probe, x, y)
        return features.effective_rank(x), features.linear_cka(x, x[:, :4]), right

    together = jax.jit(jax.vmap(all_of))(x)
    for k in range(3):
        for got, want in zip(together, all_of(x[k]), strict=True):
            np.testing.assert_allclose(got[k], want, 1e-5)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: features.effective_rank(x[0]), r"\(40,\)"),
        (lambda x: features.energy_rank(x, 1.0), "got 1.0"),
        (lambda x: features.dormant_share(x, -1.0), "got -1.0"),
        (lambda x: features.linear_cka(x, x[:9]), "300 and 9"),
        (lambda x: features.linear_cka(x[:3], x[:3], debiased=True), "got 3"),
        (lambda x: features.ncm(x, np.arange(9), num_classes=9), "300 and 9"),
        (
            lambda x: features.ridge_probe(
                x, _classes(x), x, _classes(x), num_classes=3, strengths=(0.0,)
            ),
            r"greater than 0 in every entry, got \(0.0,\)",
        ),
        (lambda x: features.lost_share(x), r"\(300, 40\)"),
        (lambda x: features.feature_drift(x, x[:9]), r"\(9, 40\)"),
        (lambda x: features.loss_along_line(jnp.sum, x, x, points=1), "got 1"),
        (lambda x: features.occlusion(jnp.sum, x, window=2), r"\(300, 40\)"),
        (
            lambda x: features.noise_kept(jnp.sum, x, jax.random.key(0), scale=0.0),
            "got 0.0",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call(INPUTS["random"])
