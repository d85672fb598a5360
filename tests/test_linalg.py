"""Growing bases and inverses compared with float64 NumPy versions of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.ops import linalg

span_update = jax.jit(linalg.span_update)
rls_update = jax.jit(linalg.rls_update, static_argnames="block")


def paper_span(basis, samples, threshold, first):
    """GPM's memory update, float64; basis [d, k] holds nothing but its columns."""
    samples = samples.astype(np.float64)
    total = (samples**2).sum()
    if first:
        u, s, _ = np.linalg.svd(samples, full_matrices=False)
        k = int((np.cumsum(s**2) / total < threshold).sum())
        return u[:, :k]
    rest = samples - basis @ (basis.T @ samples)
    u, s, _ = np.linalg.svd(rest, full_matrices=False)
    held, k = (total - (rest**2).sum()) / total, 0
    while k < len(s) and held < threshold:
        held += s[k] ** 2 / total
        k += 1
    return np.hstack([basis, u[:, :k]])[:, : len(basis)]


def decaying(rng, d, n, rate=0.9):
    """Samples whose spectrum decays, as activations' do."""
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return (q * rate ** np.arange(d)) @ rng.normal(size=(d, n))


@pytest.mark.parametrize("shape", [(40, 25), (24, 24), (30, 500)])
@pytest.mark.parametrize("threshold", [0.9, 0.99])
def test_span_update_follows_the_paper_over_three_tasks(shape, threshold):
    rng = np.random.default_rng(1)
    d, n = shape
    basis, count = jnp.zeros((d, d)), jnp.zeros((), jnp.int32)
    paper = np.zeros((d, 0))
    ranks = []
    for task in range(3):
        samples = decaying(rng, d, n).astype(np.float32)
        paper = paper_span(paper, samples, threshold, task == 0)
        basis, count = span_update(basis, count, samples, threshold, crossing=task > 0)
        assert int(count) == paper.shape[1]
        np.testing.assert_allclose(basis @ basis.T, paper @ paper.T, atol=2e-6)
        assert not np.asarray(basis[:, int(count) :]).any()
        ranks.append(int(count))
    assert 0 < ranks[0] < ranks[1] <= ranks[2] <= d


def test_the_two_rules_differ_by_the_direction_that_crosses():
    samples = jnp.diag(jnp.array([2.0, 1.0, 1.0]))  # energies 4/6, 1/6, 1/6
    empty, none = jnp.zeros((3, 3)), jnp.zeros((), jnp.int32)
    for threshold, without, including in [(0.5, 0, 1), (0.7, 1, 2), (0.9, 2, 3)]:
        for crossing, k in ((False, without), (True, including)):
            _, count = span_update(empty, none, samples, threshold, crossing=crossing)
            assert int(count) == k


def test_energy_already_held_counts_first():
    basis = jnp.zeros((3, 3)).at[0, 0].set(1.0)
    one = jnp.ones((), jnp.int32)
    samples = jnp.diag(jnp.array([3.0, 1.0, 0.5]))  # energies 9, 1, .25 of 10.25
    held = 9 / 10.25
    _, count = span_update(basis, one, samples, held - 0.01, crossing=True)
    assert int(count) == 1
    new, count = span_update(basis, one, samples, held + 0.01, crossing=True)
    assert int(count) == 2
    np.testing.assert_allclose(np.abs(new[:, 1]), [0, 1, 0], atol=1e-7)


def test_span_update_never_takes_noise_nor_more_than_fits():
    rng = np.random.default_rng(2)
    samples = jnp.asarray(rng.normal(size=(10, 3)) @ rng.normal(size=(3, 8)))
    empty, none = jnp.zeros((10, 10)), jnp.zeros((), jnp.int32)
    basis, count = span_update(empty, none, samples[:, :2], 1.0, crossing=True)
    assert int(count) == 2
    again, count = span_update(basis, count, samples[:, :2], 1.0, crossing=True)
    np.testing.assert_allclose(again, basis)
    full, count = span_update(
        empty[:, :4], none, jnp.asarray(rng.normal(size=(10, 30))), 1.0, crossing=True
    )
    assert int(count) == 4 and full.shape == (10, 4)
    same, count = span_update(empty, none, jnp.zeros((10, 5)), 0.9, crossing=True)
    assert int(count) == 0 and not same.any()


def test_span_update_columns_stay_orthonormal(newer_emitters):
    update = jax.jit(lambda u, n, x: span_update(u, n, x, 0.99, crossing=True))
    rng = np.random.default_rng(3)
    basis, count = jnp.zeros((200, 200)), jnp.zeros((), jnp.int32)
    for _ in range(4):
        samples = decaying(rng, 200, 60, 0.97).astype(np.float32)
        basis, count = update(basis, count, samples)
    u = np.asarray(basis, np.float64)[:, : int(count)]
    assert int(count) > 100
    assert np.abs(u.T @ u - np.eye(int(count))).max() < 5e-7


def test_span_update_under_vmap_and_map():
    rng = np.random.default_rng(4)
    samples = jnp.asarray(
        [decaying(rng, 12, 20, rate) for rate in (0.5, 0.7, 0.9)], jnp.float32
    )
    empty, none = jnp.zeros((12, 12)), jnp.zeros((), jnp.int32)

    def one(s):
        return linalg.span_update(empty, none, s, 0.95, crossing=False)

    expected = [one(s) for s in samples]
    for run in (jax.vmap(one), lambda s: jax.lax.map(one, s)):
        bases, counts = jax.jit(run)(samples)
        assert counts.tolist() == [int(c) for _, c in expected]
        for u, (v, _) in zip(bases, expected, strict=True):
            np.testing.assert_allclose(u @ u.T, v @ v.T, atol=1e-6)
    assert len(set(counts.tolist())) == 3


def test_span_update_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(4, 2\)"):
        linalg.span_update(
            jnp.zeros((3, 3)), jnp.zeros((), int), jnp.zeros((4, 2)), 0.9, crossing=True
        )
    with pytest.raises(ValueError, match=r"\(0, 1\], got 1.5"):
        linalg.span_update(
            jnp.zeros((3, 3)), jnp.zeros((), int), jnp.zeros((3, 2)), 1.5, crossing=True
        )


def paper_rls(inverse, x, alpha):
    k = inverse @ x
    return inverse - np.outer(k, k) / (alpha + x @ k)


@pytest.mark.parametrize("alpha, rtol, atol", [(1.0, 0, 1e-5), (1e-3, 1e-3, 1e-5)])
def test_rls_update_follows_the_paper_over_a_hundred_batches(alpha, rtol, atol):
    rng = np.random.default_rng(5)
    x = np.maximum(rng.normal(size=(100, 64, 50)), 0).mean(1).astype(np.float32)
    inverse, paper = jnp.eye(50), np.eye(50)
    for row in x:
        inverse = rls_update(inverse, row, alpha)
        paper = paper_rls(paper, row.astype(np.float64), alpha)
    scale = np.abs(paper).max()
    np.testing.assert_allclose(inverse, paper, rtol=0, atol=atol + rtol * scale)
    assert np.trace(paper) < 45  # a part of P has been removed
    # The closed form, as an independent check of the transcription.
    closed = alpha * np.linalg.inv(alpha * np.eye(50) + x.T.astype(np.float64) @ x)
    np.testing.assert_allclose(paper, closed, atol=1e-8)


@pytest.mark.parametrize("rows, block", [(1, 4), (7, 4), (40, 16), (5, 32)])
def test_rls_update_blocked_equals_one_by_one(rows, block):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(rows, 20))
    paper = np.eye(20)
    for row in x:
        paper = paper_rls(paper, row, 0.1)
    inverse = rls_update(jnp.eye(20), jnp.asarray(x, jnp.float32), 0.1, block=block)
    np.testing.assert_allclose(inverse, paper, atol=2e-6)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-7)


def test_rls_update_survives_a_tiny_alpha_and_repeated_samples():
    x = jnp.asarray(np.random.default_rng(7).normal(size=(30, 8)), jnp.float32)
    inverse = jnp.eye(8)
    for _ in range(20):
        inverse = rls_update(inverse, x, 1e-6)
    assert np.isfinite(inverse).all() and np.abs(inverse).max() < 1e-4


@pytest.mark.parametrize("form", ["one by one", "blocked"])
def test_rls_update_holds_at_the_official_final_alpha(form):
    """Two tasks of similar windows, α from 1 to 1e-5: the rest of P is still exact.

    A gate of 64 ε ‖x‖², about 1e-4 here, would skip most of what must be removed.
    """
    rng = np.random.default_rng(8)
    d, steps = 48, 120
    axes, _ = np.linalg.qr(rng.normal(size=(d, d)))
    spread = rng.normal(size=(2, steps, 9, d)) * 0.8 ** np.arange(d) @ axes.T
    x = 2 * np.maximum(spread + 0.3 * rng.normal(size=d), 0).astype(np.float32)
    alphas = (1e-5 ** np.linspace(0, 1, steps)).astype(np.float32)

    def step(inverse, given):
        rows, alpha = given
        if form == "blocked":
            return linalg.rls_update(inverse, rows, alpha), None

        def take(inverse, row):
            return linalg.rls_update(inverse, row, alpha), None

        return jax.lax.scan(take, inverse, rows)[0], None

    run = jax.jit(lambda inverse, rows: jax.lax.scan(step, inverse, (rows, alphas))[0])
    inverse, paper = jnp.eye(d), np.eye(d)
    for task in x:
        inverse = run(inverse, task)
        for rows, alpha in zip(np.float64(task), np.float64(alphas), strict=True):
            for row in rows:
                paper = paper_rls(paper, row, alpha)
        error = np.linalg.norm(inverse - paper) / np.linalg.norm(paper)
        assert error < 1e-4
    assert np.trace(paper) < 0.05 * d  # nearly all of P has been removed


def test_rls_update_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(4,\)"):
        linalg.rls_update(jnp.eye(3), jnp.zeros(4), 1.0)
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        linalg.rls_update(jnp.eye(3), jnp.zeros(3), 0)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        linalg.rls_update(jnp.eye(3), jnp.zeros((2, 3)), 1.0, block=0)


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
def test_numbers_of_any_kind_are_checked(kind):
    none = jnp.zeros([], int)
    with pytest.raises(ValueError, match="alpha must be positive, got -1"):
        linalg.rls_update(jnp.eye(2), jnp.ones(2), kind(-1))
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 2"):
        linalg.span_update(jnp.zeros((3, 3)), none, jnp.eye(3), kind(2), crossing=True)


def test_no_samples():
    none = jnp.zeros([], int)
    np.testing.assert_array_equal(
        linalg.rls_update(jnp.eye(2), jnp.zeros((0, 2)), 1.0), jnp.eye(2)
    )
    with pytest.raises(ValueError, match="span_update needs samples"):
        linalg.span_update(
            jnp.zeros((3, 3)), none, jnp.zeros((3, 0)), 0.9, crossing=True
        )
