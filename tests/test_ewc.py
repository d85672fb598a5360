"""EWC compared with float64 NumPy: the Fisher, and the penalty after three tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl.strategies.ewc import EWCState, ewc, fisher_diagonal, merge_quadratics

D, K, N = 5, 6, 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
W = (0.5 * RNG.normal(size=(D, K))).astype(np.float32)


def _setup(scenario="task", num_tasks=3):
    return jaxcl.setup_for(
        lambda w, x: x @ w["head"],
        jnp.zeros((N, D)),
        num_outputs=K,
        num_tasks=num_tasks,
        heads=(("head",),),
        scenario=scenario,
    )


def numpy_fisher(w, x, y, mask, kind):
    """Per-example squared gradients of a linear softmax, by hand, in float64."""
    w, x = np.float64(w), np.float64(x)
    total = np.zeros_like(w)
    for xi, yi in zip(x, y, strict=True):
        z = np.where(mask, xi @ w, -np.inf)
        p = np.exp(z - z.max())
        p /= p.sum()
        for k in range(len(p)) if kind == "exact" else [yi]:
            g = np.outer(xi, (np.arange(len(p)) == k) - p)
            total += (p[k] if kind == "exact" else 1.0) * g**2
    return total / len(x)


def _fisher(w, y, task, kind, setup=None, **options):
    setup = setup or _setup()
    data = jaxcl.array_data(jnp.asarray(X), jnp.asarray(y), task)
    options = {"samples": N, "chunk": 5} | options
    return fisher_diagonal(
        setup,
        {"head": jnp.asarray(w)},
        (),
        data,
        jnp.asarray(task),
        jax.random.key(0),
        kind=kind,
        **options,
    )["head"]


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("mixes", [False, True])
def test_fisher_is_a_mean_of_per_example_squares(kind, mixes):
    y = 2 + np.arange(N) % 2
    mask = np.array([0, 0, 1, 1, 0, 0], bool)
    setup = _setup()._replace(mixes_examples=mixes)
    ours = _fisher(W, y, 1, kind, setup)
    theirs = numpy_fisher(W, X, y, mask, kind)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-8)
    # The square of the mean gradient would be something else.
    if kind == "empirical":
        assert not np.allclose(theirs, _mean_gradient_squared(y, mask), rtol=0.2)


def _mean_gradient_squared(y, mask):
    z = np.where(mask, np.float64(X) @ W, -np.inf)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (X.T @ (np.eye(K)[y] - p) / N) ** 2


def test_sampled_fisher_averages_to_the_exact():
    y = np.arange(N) % 2
    exact = _fisher(W, y, 0, "exact")
    setup, n = _setup(), 400
    data = jaxcl.array_data(jnp.asarray(X), jnp.asarray(y), 0)

    def sampled(key):
        return fisher_diagonal(
            setup,
            {"head": jnp.asarray(W)},
            (),
            data,
            jnp.asarray(0),
            key,
            kind="sampled",
            samples=N,
            chunk=4,
        )["head"]

    draws = jax.vmap(sampled)(jax.random.split(jax.random.key(1), n))
    error = draws.std(0) / n**0.5
    assert (jnp.abs(draws.mean(0) - exact) <= 5 * error + 1e-6).all()


def test_samples_limit_the_examples():
    y = np.arange(N) % 2
    one = _fisher(W, y, 0, "empirical", samples=1, chunk=3)
    mask = np.arange(K) < 2
    each = [
        numpy_fisher(W, X[i : i + 1], y[i : i + 1], mask, "empirical") for i in range(N)
    ]
    assert min(np.abs(one - e).max() for e in each) < 1e-6


@pytest.mark.parametrize(
    "online, decay, decay_penalty",
    [(False, 1.0, False), (True, 1.0, False), (True, 0.5, False), (True, 0.5, True)],
)
def test_penalty_after_three_tasks_is_the_papers(online, decay, decay_penalty):
    """A state that the first trace closes over would stay task 1's for ever."""
    strength = 7.0
    setup = _setup()
    method = ewc(
        setup,
        strength=strength,
        online=online,
        decay=decay,
        decay_penalty=decay_penalty,
        samples=N,
    )
    net = {"head": jnp.asarray(W)}
    params = jaxcl.init_params(method, jax.random.key(0), net)
    state = method.init(params)
    anchors, fishers = [], []

    @jax.jit
    def consolidate(state, net, y, task):
        data = jaxcl.array_data(jnp.asarray(X), y, task)
        of_task = dict(data=data, model_state=(), task=task, key=jax.random.key(task))
        return method.after_task(params._replace(net=net), state, **of_task)[1]

    @jax.jit
    def value(state, net, y, task):
        loss = jaxcl.transform_loss(method, setup)
        ctx = jaxcl.context(jnp.asarray(X), y, task=task)
        total, out = loss(params._replace(net=net), state, ctx)
        return total - setup.task_loss(out.logits, ctx.batch, ctx.task)

    for task in range(3):
        w = (W + 0.3 * RNG.normal(size=W.shape)).astype(np.float32)
        y = 2 * task + np.arange(N) % 2
        mask = np.arange(K) // 2 == task
        state = consolidate(state, {"head": jnp.asarray(w)}, jnp.asarray(y), task)
        anchors.append(np.float64(w))
        fishers.append(numpy_fisher(w, X, y, mask, "empirical"))
    probe = np.float64(W) + 0.5
    if online:
        f = (fishers[0] * decay + fishers[1]) * decay + fishers[2]
        if decay_penalty:  # the weights of three, two and one task ago: γ³, γ², γ
            f = sum(decay ** (3 - t) * fishers[t] for t in range(3))
        expected = strength / 2 * (f * (probe - anchors[2]) ** 2).sum()
    else:
        expected = (
            strength
            / 2
            * sum(
                (f * (probe - a) ** 2).sum()
                for f, a in zip(fishers, anchors, strict=True)
            )
        )
    ours = value(state, {"head": jnp.asarray(probe, jnp.float32)}, jnp.asarray(y), 2)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_merged_quadratics_are_their_sum():
    rng = np.random.default_rng(3)
    f, a = rng.exponential(size=(4, 9)), rng.normal(size=(4, 9))
    f[:, 0] = 0  # a weight that matters to no task
    f[1:, 1] = 0  # one that matters only to the first task
    state = EWCState(jnp.zeros(9), jnp.zeros(9), jnp.zeros(()))
    for fi, ai in zip(f, a, strict=True):
        state = merge_quadratics(
            state, jnp.asarray(fi, jnp.float32), jnp.asarray(ai, jnp.float32)
        )
    theta = rng.normal(size=9)
    ours = (state.importance * (theta - state.anchor) ** 2).sum() + state.offset
    np.testing.assert_allclose(ours, (f * (theta - a) ** 2).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "settings,what",
    [
        (dict(strength=-1.0), "strength must be at least 0, got -1.0"),
        (dict(strength=float("nan")), "got nan"),
        (dict(strength=1.0, fisher="diagonal"), "'diagonal'"),
        (dict(strength=1.0, online=True, decay=1.5), r"\[0, 1\], got 1.5"),
        (dict(strength=1.0, decay=0.5), "online=True"),
        (dict(strength=1.0, decay_penalty=True), "decay_penalty=True needs online"),
        (dict(strength=1.0, samples=0), "ewc: samples must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, what):
    with pytest.raises(ValueError, match=what):
        ewc(_setup(), **settings)
