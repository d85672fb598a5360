"""Decompositions: equal to NumPy's, one matrix at a time on a CPU, used everywhere."""

import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcl
from jaxcl.ops import decompositions, linalg

ROOT = Path(jaxcl.__file__).parent
A = np.random.default_rng(0).normal(size=(3, 4, 9, 6)).astype(np.float32)


def test_each_gives_back_its_matrix():
    a = A[0, 0].astype(np.float64)
    r = decompositions.qr_r(A[0, 0])
    np.testing.assert_allclose(r.T @ r, a.T @ a, atol=1e-5)
    assert (np.tril(r, -1) == 0).all()
    u, s, vt = decompositions.svd(A[0, 0])
    np.testing.assert_allclose((u * s) @ vt, a, atol=1e-5)
    np.testing.assert_allclose(s, np.linalg.svd(a)[1], rtol=1e-5)
    values, vectors = decompositions.eigh(A[0, 0].T @ A[0, 0])
    np.testing.assert_allclose((vectors * values) @ vectors.T, a.T @ a, atol=1e-4)
    np.testing.assert_allclose(values, np.linalg.eigh(a.T @ a)[0], rtol=1e-4)


BATCHED = {
    "qr_r": decompositions.qr_r,
    "svd": decompositions.svd,
    "eigh": lambda a: decompositions.eigh(a.T @ a),
    "solve": decompositions.one_at_a_time(lambda a: jnp.linalg.solve(a[:6], a[3:])),
    "ridge": lambda a: decompositions.ridge(a, a[:, :2], jnp.array([0.1, 1.0])),
    "span_update": lambda a: linalg.span_update(
        jnp.zeros((9, 9)), jnp.int32(0), a, 0.9, crossing=True
    ),
}


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_equals_its_matrices_one_by_one(name):
    fn = BATCHED[name]
    batched = jax.jit(jax.vmap(jax.vmap(fn)))(A)
    for i, j in ((0, 0), (2, 3)):
        jax.tree.map(
            lambda got, want, at=(i, j): np.testing.assert_allclose(
                got[at], want, atol=1e-4
            ),
            batched,
            fn(A[i, j]),
        )


@pytest.mark.parametrize("name", BATCHED)
def test_lapack_never_gets_a_batch_on_a_cpu(name):
    """LAPACK would split a batch among threads and wait for them."""
    text = jax.jit(jax.vmap(jax.vmap(BATCHED[name]))).lower(A).as_text()
    calls = [line for line in text.splitlines() if "@lapack_" in line]
    assert calls
    for line in calls:
        operand = re.search(r": \(tensor<([0-9x]+)xf(32|64)>", line)
        assert operand and operand[1].count("x") == 1, line


def test_an_accelerator_gets_the_batch():
    text = jax.export.export(jax.jit(jax.vmap(decompositions.eigh)), platforms=["cuda"])
    module = text(jax.ShapeDtypeStruct((5, 6, 6), jnp.float32)).mlir_module()
    assert "tensor<5x6x6xf32>" in module and "stablehlo.while" not in module


def test_float64_stays_float64_in_a_batch_of_batches():
    """Outside of the function JAX would round its products to float32, with a warning.

    On a CPU the batches are loops; so this is about accelerators.
    """
    nested = jax.jit(jax.vmap(jax.vmap(BATCHED["ridge"])))
    with warnings.catch_warnings(action="error"):
        text = jax.export.export(nested, platforms=["cuda"])
        module = text(jax.ShapeDtypeStruct(A.shape, jnp.float32)).mlir_module()
    products = [line for line in module.splitlines() if "stablehlo.dot_general" in line]
    assert products and not any("xf32>" in line for line in products)


def test_what_is_no_matrix_is_refused():
    for fn in (decompositions.qr_r, decompositions.svd):
        with pytest.raises(ValueError, match=r"single matrix .*got shape \[4, 9, 6\]"):
            fn(A[0])
    with pytest.raises(ValueError, match=r"eigh needs .*got shape \[9, 6\]"):
        decompositions.eigh(A[0, 0])


# Functions that call LAPACK on a CPU. A plain norm or product does not.
CALLS = re.compile(
    r"linalg\.(qr|svd|svdvals|eig|eigh|eigvals|eigvalsh|cholesky|cho_factor|cho_solve|"
    r"solve|solve_triangular|inv|pinv|lstsq|det|slogdet|matrix_rank|cond|expm|lu|schur)"
    r"\("
)
SHARDED = ("ops", "strategies", "training", "nn", "testing")


def test_what_runs_on_several_devices_decomposes_through_here():
    """Rooms whose functions run on several devices call no decomposition of JAX."""
    files = [f for room in SHARDED for f in (ROOT / room).rglob("*.py")]
    files += list(ROOT.glob("*.py"))
    found = {
        str(file.relative_to(ROOT))
        for file in files
        if CALLS.search(file.read_text()) and "one_at_a_time" not in file.read_text()
    }
    assert found == set()
