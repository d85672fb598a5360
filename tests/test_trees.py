"""Sums over trees, in an order that the program fixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.ops import trees


@pytest.mark.parametrize("n", [1, 2, 3, 10, 64, 1001])
def test_total_is_the_sum_in_float64(n):
    values = np.random.default_rng(n).normal(size=n).astype(np.float32)
    got = jax.jit(trees.total)(values)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.float64(values).sum(), atol=1e-6 * n**0.5)
    np.testing.assert_array_equal(jax.grad(trees.total)(jnp.asarray(values)), 1)


def test_total_is_more_exact_than_adding_one_by_one():
    values = np.full(2**20, 0.1, np.float32)
    exact = np.float64(values).sum()
    one_by_one = np.cumsum(values)[-1]
    assert abs(trees.total(jnp.asarray(values)) - exact) < 1e-3 * abs(
        one_by_one - exact
    )


@pytest.mark.parametrize("n", [0, 1, 300, 2048, 4095, 4096, 5000, 100_000])
def test_a_sum_by_rows_is_the_sum_in_float64(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, 3, n)).astype(np.float32)

    def one(a, b):
        return trees.summed(lambda a, b: a * b * b, a, b)

    got = jax.jit(jax.vmap(one))(a, b)
    exact = (np.float64(a) * np.float64(b) ** 2).sum(1)
    np.testing.assert_allclose(got, exact, atol=2e-6 * max(n, 1) ** 0.5)
    # A seed alone is itself among others.
    np.testing.assert_array_equal(
        [jax.jit(one)(*of) for of in zip(a, b, strict=True)], got
    )


def test_a_sum_by_rows_adds_a_row_at_a_time():
    """XLA's CPU backend would add one number after another."""
    a = jnp.ones(100 * trees.ROW)
    program = jax.jit(lambda a: trees.summed(jnp.square, a)).lower(a).compile()
    text = program.as_text()
    assert "while(" in text and " reduce(" not in text and " dot(" not in text
    assert program(a) == 100 * trees.ROW


def test_a_quadratics_gradient_is_its_own():
    """Its own rule for the gradient holds under jit, and for the weight too."""
    rng = np.random.default_rng(0)
    w, d = (rng.normal(size=(7, 5)).astype(np.float32) for _ in range(2))
    value, (of_w, of_d) = jax.jit(
        jax.value_and_grad(lambda w, d: 3 * trees.tree_quadratic([w], [d]), (0, 1))
    )(w, d)
    w, d = np.float64(w), np.float64(d)
    np.testing.assert_allclose(value, 3 * (w * d * d).sum(), rtol=1e-5)
    np.testing.assert_allclose(of_w, 3 * d * d, rtol=1e-5)
    np.testing.assert_allclose(of_d, 6 * w * d, rtol=1e-5)


def test_a_quadratic_has_derivatives_of_any_kind():
    d = jnp.arange(3.0)
    w = jnp.ones(3)

    def f(d):
        return trees.tree_quadratic([w], [d])

    np.testing.assert_allclose(jax.hessian(f)(d), 2 * jnp.eye(3))
    np.testing.assert_allclose(jax.jacfwd(f)(d), 2 * d)
