"""Gates, their derivative, annealing, compensation, clamp and masks, by numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import losses, transforms
from jaxcl.nn.layers import Dropout
from jaxcl.ops import gates
from jaxcl.ops.pooling import max_pool


def sigma(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


WIDTHS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def gate_in_a_loop(e, s, derivative):
    """Gates and derivatives, as an epoch's compiled loop makes them."""

    def body(i, carry):
        return jax.vmap(jax.value_and_grad(lambda e: gates.gate(e, s, derivative)))(e)

    start = jnp.zeros(e.shape, jnp.float32), jnp.zeros_like(e)
    return jax.jit(lambda s: jax.lax.fori_loop(0, 3, body, start))(s)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_gate_rounds_and_learns_as_in_float32_whatever_computes_it(width):
    """∂a/∂e = s·a(1 − a), a in float32: 0 from s·e = 24 ln 2 on, in every width."""
    s = 3.0
    with jax.enable_x64(width == jnp.float64):
        e = jnp.linspace(-10, 6, 700).astype(width)
        a, da = gate_in_a_loop(e, jnp.float32(s), "float32")
        e, a, da = np.asarray(e.astype(jnp.float32)), np.asarray(a), np.asarray(da)
    x = np.float32(s) * e
    want = np.float32(1) / (np.float32(1) + np.exp(-x))
    np.testing.assert_allclose(a, want, rtol=3e-7)
    # Half a last digit of exp decides between neighbouring float32 numbers.
    digit, wanted = s * 2.0**-23, s * want * (1 - want.astype(np.float64))
    own = jnp.finfo(width)  # what the gradient is returned in
    np.testing.assert_allclose(
        da, wanted, rtol=float(own.eps), atol=1.01 * digit + float(own.tiny)
    )
    open_ = x >= 16.64
    assert open_.sum() > 5 and (a[open_] == 1).all() and (da[open_] == 0).all()
    assert (da[(x > -9) & (x < 9)] > 0).all()
    assert jnp.isnan(gates.gate(jnp.full((), jnp.nan), s))  # NaN must not be open


@pytest.mark.parametrize("width", WIDTHS)
def test_the_regulariser_leaves_a_gate_that_is_open_alone(width):
    """No bit changes in the rest of a compensated epoch once the gate is open."""

    def step(i, e):
        s = gates.anneal(i / 99, 400.0)
        g = jax.grad(lambda e: gates.gate(e, s).sum())(e)
        return e - (0.05 * gates.compensate(g, e, s, 400.0)).astype(e.dtype)

    with jax.enable_x64(width == jnp.float64):
        e = jnp.array([0.9, 2.0, 6.0, -0.9], width)
        # s is 20.2 at step 5: 0.9 · 20.2 = 18.2.
        end = jax.jit(lambda e: jax.lax.fori_loop(5, 100, step, e))(e)
        assert (end[:3] == e[:3]).all() and end.dtype == width


def test_an_unknown_derivative_is_refused():
    with pytest.raises(ValueError, match="one of float32, exact, got 'soft'"):
        gates.gate(jnp.zeros(3), 1.0, "soft")


def test_exact_derivative_where_one_minus_a_underflows():
    e = np.float32([-0.05, -1e-3, 0.0, 0.01, 0.06, 0.12, 0.2])
    s = 400.0
    a, da = gate_in_a_loop(jnp.asarray(e), jnp.float32(s), "exact")
    x = s * e.astype(np.float64)
    np.testing.assert_allclose(a, sigma(x), rtol=1e-5)
    np.testing.assert_allclose(da, s * sigma(x) * sigma(-x), rtol=2e-5)
    assert np.float32(1) - a[-1] == 0 < da[-1]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_gate_is_float32_whatever_it_is_given(dtype):
    e = jnp.linspace(-6, 6, 9).astype(dtype)
    assert gates.gate(e, 400.0).dtype == jnp.float32
    g = gates.compensate(jnp.ones(9, dtype), e, jnp.float32(400), 400.0)
    assert g.dtype == jnp.float32 and np.isfinite(g).all()


def test_anneal_runs_from_the_inverse_to_s_max():
    s = [float(gates.anneal(p, 400.0)) for p in (0, 0.5, 1)]
    np.testing.assert_allclose(s, [1 / 400, (400 + 1 / 400) / 2, 400], rtol=1e-6)
    for bad in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="s_max must be greater than 0, got"):
            gates.anneal(0.0, bad)


@pytest.mark.parametrize("s", [1 / 400, 3.0, 400.0])
def test_compensated_gradient_is_that_of_a_slope_of_one_times_s_max(s):
    e = np.linspace(-6, 6, 41).astype(np.float32)
    e = e[np.abs(s * e) < 49]
    g = jax.vmap(jax.grad(lambda e: gates.gate(e, s, "exact")))(jnp.asarray(e))
    closed = 400 / (2 * (np.cosh(e.astype(np.float64)) + 1))
    np.testing.assert_allclose(gates.compensate(g, e, s, 400.0), closed, rtol=1e-4)


def test_compensation_is_clamped_and_finite():
    e = np.float32([-6, 0.2, 6])
    got = gates.compensate(jnp.ones(3), e, jnp.float32(400), 400.0)
    want = (np.cosh(50.0) + 1) / (np.cosh(e.astype(np.float64)) + 1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_clamp_keeps_what_stays_inside_bit_for_bit():
    e = jnp.float32([0.1, 5.9, -5.9, 6.0])
    u = jnp.float32([1e-7, 0.5, -0.5, -0.1])
    new = gates.clamp(u, e, 6.0)
    assert new[0] == u[0] and new[3] == u[3]
    np.testing.assert_allclose(e + new, [0.1, 6, -6, 5.9], rtol=1e-6)


def test_conditional_mask_tiles_channels_that_lie_innermost():
    before, behind = jnp.float32([1.0, 0.25]), jnp.float32([1.0, 0.5, 0.0])
    np.testing.assert_allclose(gates.conditional_mask(None, behind), [0, 0.5, 1])
    small = [[0, 0.5, 1], [0.75, 0.75, 1]]
    np.testing.assert_allclose(gates.conditional_mask(before, behind), small)
    np.testing.assert_allclose(gates.conditional_mask(before, behind, 4), small + small)
    with pytest.raises(ValueError, match="5 inputs cannot read a layer of 2 units"):
        gates.conditional_mask(before, behind, 5)


def test_gates_commute_with_relu_pooling_and_dropout():
    z = jax.random.normal(jax.random.key(0), [3, 6, 6, 4])
    a = jnp.float32([0.0, 0.3, 1.0, 1e-3])

    def after(z):
        drop = Dropout(0.5).apply({}, z, True, rngs={"dropout": jax.random.key(1)})
        maximum = jax.nn.relu(max_pool(drop))
        return maximum, jax.nn.relu(drop).mean((1, 2))

    for gated, plain in zip(after(z * a), after(z), strict=True):
        np.testing.assert_allclose(gated, plain * a, rtol=1e-5, atol=1e-7)


def test_gate_sparsity_is_the_share_of_free_units_over_all_layers():
    used = {"a": jnp.float32([1, 0.5]), "b": jnp.float32([0, 0, 0.25])}
    opened = {"a": jnp.float32([0.9, 0.4]), "b": jnp.float32([1, 0, 0.2])}
    value = losses.gate_sparsity(
        lambda g: jnp.float32(2), gates=lambda g: g, used=used, strength=3.0
    )(opened)
    share = (0.4 * 0.5 + 1 + 0.2 * 0.75) / (0.5 + 2.75)
    np.testing.assert_allclose(value, 2 + 3 * share, rtol=1e-6)
    with pytest.raises(ValueError, match="strength must be at least 0, got -1"):
        losses.gate_sparsity(lambda g: g, gates=lambda g: g, used=used, strength=-1)


def test_gate_sparsity_of_a_full_network_is_zero_with_a_finite_gradient():
    loss = losses.gate_sparsity(
        lambda e: jnp.zeros(()),
        gates=lambda e: [gates.gate(e, 1.0)],
        used=[jnp.ones(3)],
        strength=1.0,
    )
    value, gradient = jax.value_and_grad(loss)(jnp.zeros(3))
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adam(0.1),
        optax.adamw(0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    ],
    ids=["momentum", "adam", "adamw", "decay"],
)
def test_mask_updates_holds_whatever_the_optimizer_adds(optimizer):
    tx = optax.chain(optimizer, transforms.mask_updates())
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.ones(2)}
    start, state = params, tx.init(params)
    mask = {"w": jnp.array([1.0, 0.0]), "b": None}
    for _ in range(3):
        step, state = tx.update(start, state, params, mask=mask)
        params = optax.apply_updates(params, step)
    assert (params["w"][:, 1] == start["w"][:, 1]).all()
    assert (params["w"][:, 0] != start["w"][:, 0]).all()
    assert (params["b"] != start["b"]).all()


def test_mask_updates_refuses_a_mask_that_does_not_fit():
    tx = transforms.mask_updates()
    with pytest.raises(ValueError, match=r"shape \[3\] does not broadcast .* \[2\]"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), mask=jnp.ones(3))


def test_compensate_transform_is_the_function_on_each_leaf():
    e = {"l": jnp.float32([[0.5, -2.0]])}
    tx = optax.chain(transforms.compensate(400.0), optax.sgd(1.0))
    step, _ = tx.update({"l": jnp.ones([1, 2])}, tx.init(e), e, s=2.0)
    want = -gates.compensate(jnp.ones([1, 2]), e["l"], 2.0, 400.0)
    np.testing.assert_allclose(step["l"], want)
    with pytest.raises(ValueError, match="s_max must be greater than 0, got 0"):
        transforms.compensate(0)
    with pytest.raises(ValueError, match="needs the embeddings"):
        transforms.compensate(1.0).update(e, (), s=1.0)
