"""project_out in users' own loops, and which optimizers undo it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcl
from jaxcl import linearity, strategy, transforms
from jaxcl.ops import projection
from jaxcl.ops.depthwise import depthwise


def orthonormal(rng, d, r, pad=0):
    q, _ = np.linalg.qr(rng.normal(size=(d, r)))
    return jnp.asarray(np.pad(q, ((0, 0), (0, pad))), jnp.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_basis_and_projector_agree_with_numpy(rng):
    g = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    u = orthonormal(rng, 8, 3, pad=5)
    v = np.asarray(u, np.float64)
    expected = g - v @ (v.T @ np.asarray(g, np.float64))
    assert np.abs(expected - g).max() > 0.1
    for given, space in (("basis", u), ("projector", u @ u.T)):
        tx = transforms.project_out(given)
        out, _ = tx.update({"w": g}, tx.init({"w": g}), subspace={"w": space})
        np.testing.assert_allclose(out["w"], expected, atol=1e-6)


def test_project_onto_multiplies_by_the_projector_in_float64(rng):
    """P is OWM's matrix: symmetric, but not a projector in the strict sense."""
    a = rng.normal(size=(24, 24))
    p = np.linalg.inv(np.eye(24) + a @ a.T)
    dense, kernel = rng.normal(size=(24, 5)), rng.normal(size=(2, 3, 4, 6))  # HWIO
    expected = {
        "dense": p @ dense,
        "conv": (p @ kernel.reshape(24, 6)).reshape(kernel.shape),
    }
    tree = {"dense": jnp.float32(dense), "conv": jnp.float32(kernel)}
    tx = transforms.project_onto()
    projector = {name: jnp.float32(p) for name in tree}
    out, state = jax.jit(tx.update)(tree, tx.init(tree), projector=projector)
    assert state == tx.init(tree)
    for name, leaf in out.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-6)
        assert np.abs(expected[name] - tree[name]).max() > 0.1


def test_project_onto_what_is_left_is_project_out_of_what_is_taken(rng):
    g = {"w": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)}
    u = orthonormal(rng, 8, 3)
    onto, out_of = transforms.project_onto(), transforms.project_out()
    left = {"w": jnp.eye(8) - jnp.matmul(u, u.T, precision="highest")}
    a, _ = onto.update(g, onto.init(g), projector=left)
    b, _ = out_of.update(g, out_of.init(g), subspace={"w": u})
    np.testing.assert_allclose(a["w"], b["w"], atol=1e-6)


def test_project_onto_lets_leaves_and_subtrees_without_a_projector_pass():
    tree = {"a": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "c": [jnp.ones(3)] * 2}
    given = {"a": {"w": jnp.diag(jnp.array([0.0, 0.5])), "b": None}, "c": None}
    tx = transforms.project_onto()
    out, _ = tx.update(tree, tx.init(tree), projector=given)
    assert out["a"]["w"].tolist() == [[0, 0], [0.5, 0.5]]
    assert out["a"]["b"] is tree["a"]["b"] and out["c"] == tree["c"]


@pytest.mark.parametrize(
    "projector, leaf, message",
    [
        ((3, 3), (4, 5), r"projector of shape \[3, 3\] .* \[4, 5\], .* of 4 rows"),
        ((4, 2), (4, 5), r"projector of shape \[4, 2\]"),
        ((4,), (4, 5), r"projector of shape \[4\]"),
        ((4, 4), (4,), r"projector of shape \[4, 4\] .* \[4\], .* of 0 rows"),
        ((2, 2), (2, 3, 5), r"\[2, 2\] does not fit .* of 6 rows"),
    ],
)
def test_a_projector_that_does_not_fit_is_refused(projector, leaf, message):
    tx = transforms.project_onto()
    with pytest.raises(ValueError, match=message):
        tx.update(jnp.ones(leaf), tx.init(()), projector=jnp.ones(projector))


def test_kernels_of_convolutions_are_matrices_of_their_windows(rng):
    g = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)  # HWIO
    u = orthonormal(rng, 24, 7)
    out = projection.remove(g, u)
    assert out.shape == g.shape
    np.testing.assert_allclose(u.T @ out.reshape(24, 5), np.zeros((7, 5)), atol=1e-6)


def test_leaves_and_subtrees_without_a_subspace_pass(rng):
    tree = {"a": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "c": [jnp.ones(3)] * 2}
    space = {"a": {"w": jnp.eye(2)[:, :1], "b": None}, "c": None}
    tx = transforms.project_out()
    out, _ = tx.update(tree, tx.init(tree), subspace=space)
    assert out["a"]["w"].tolist() == [[0, 0], [1, 1]]
    assert out["a"]["b"] is tree["a"]["b"] and out["c"] == tree["c"]


@pytest.mark.parametrize(
    "given, space, leaf, message",
    [
        ("basis", (3, 2), (4, 5), r"basis of shape \[3, 2\] .* \[4, 5\]"),
        ("projector", (4, 2), (4, 5), r"projector of shape \[4, 2\]"),
        ("basis", (4, 2), (4,), r"basis of shape \[4, 2\]"),
    ],
)
def test_a_subspace_that_does_not_fit_is_refused(given, space, leaf, message):
    tx = transforms.project_out(given)
    with pytest.raises(ValueError, match=message):
        tx.update(jnp.ones(leaf), tx.init(()), subspace=jnp.ones(space))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="basis, projector, got 'span'"):
        transforms.project_out("span")


OPTIMIZERS = {
    "sgd": (optax.sgd(0.1), True),
    "momentum": (optax.sgd(0.1, 0.9), True),
    "nesterov": (optax.sgd(0.1, 0.9, nesterov=True), True),
    "schedule": (optax.sgd(optax.cosine_decay_schedule(0.1, 10)), True),
    "clip by norm": (optax.chain(optax.clip_by_global_norm(1), optax.sgd(1)), True),
    "clip by value": (optax.chain(optax.clip(0.1), optax.sgd(1)), False),
    "adam": (optax.adam(0.01), False),
    "adamw": (optax.adamw(0.01), False),
    "weight decay": (optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(1)), False),
    "rmsprop": (optax.rmsprop(0.01), False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_which_optimizers_keep_a_subspace(rng, name):
    """The probe's answer is compared with the actual leak on another problem."""
    optimizer, kept = OPTIMIZERS[name]
    assert linearity.keeps_subspace(optimizer) is kept
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        linearity.warn_unless_linear(strategy(needs_linear=True), optimizer)
        linearity.warn_unless_linear(strategy(needs_linear=False), optimizer)
    assert ["are not protected" in str(w.message) for w in caught] == [True] * (
        not kept
    )
    first, last = leaks(rng, optimizer)
    assert (first < 1e-5) is kept
    assert last < 1e-5


def leaks(rng, optimizer):
    """‖UᵀΔW‖/‖ΔW‖ after 20 steps, projecting gradients and projecting updates."""
    u = orthonormal(rng, 12, 5, pad=2)
    target = jnp.asarray(3 * rng.normal(size=(12, 4)), jnp.float32)
    start = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    out = []
    for tx in (
        optax.chain(transforms.project_out(), optimizer),
        optax.chain(optimizer, transforms.project_out()),
    ):
        params, state = start, tx.init(start)
        for _ in range(20):
            g = jax.grad(lambda w: jnp.sum((w - target) ** 2) / 10)(params)
            step, state = tx.update(g, state, params, subspace=u)
            params = optax.apply_updates(params, step)
        moved = params - start
        assert jnp.linalg.norm(moved) > 1e-2
        out.append(float(jnp.linalg.norm(u.T @ moved) / jnp.linalg.norm(moved)))
    return out


def test_an_optimizer_that_cannot_be_tried_is_said_to_be_so():
    picky = optax.multi_transform({"a": optax.sgd(1)}, {"layer": {"w": "a"}})
    with pytest.warns(UserWarning, match="could not be tried"):
        linearity.warn_unless_linear(strategy(needs_linear=True), picky)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linearity.warn_unless_linear(strategy(), picky)


def test_the_warning_points_at_the_line_that_wraps_the_optimizer():
    setup = jaxcl.setup_for(
        lambda net, x: x @ net["head"],
        jnp.zeros((2, 3)),
        num_outputs=2,
        num_tasks=1,
        heads=(("head",),),
    )
    method = strategy(needs_linear=True)
    with pytest.warns(UserWarning, match="leave the subspace") as caught:
        jaxcl.transform_optimizer(method, optax.adam(1e-3), setup)
    assert [w.filename for w in caught] == [__file__]
    chained = jaxcl.chain(strategy(), method)
    with pytest.warns(UserWarning, match="leave the subspace"):
        jaxcl.transform_optimizer(chained, optax.adam(1e-3), setup)


def test_it_serves_flax_nnx(rng):
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    u = orthonormal(rng, 6, 2)
    before = model.kernel[...] + 0  # the step reuses the buffer
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.adam(0.1), transforms.project_out()), wrt=nnx.Param
    )
    x, y = jnp.asarray(rng.normal(size=(9, 6))), jnp.ones((9, 3))

    @nnx.jit
    def step(model, optimizer, u):
        grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        space = jax.tree.map(lambda g: u if g.ndim == 2 else None, grads)
        optimizer.update(model, grads, subspace=space)

    for _ in range(5):
        step(model, optimizer, u)
    moved = model.kernel[...] - before
    assert jnp.linalg.norm(moved) > 0.1
    assert jnp.linalg.norm(u.T @ moved) < 1e-5 * jnp.linalg.norm(moved)


@pytest.mark.parametrize(
    "reference", [jnp.ones((3, 1)), jnp.array(1.0), jnp.ones(4)], ids=str
)
def test_a_reference_of_other_shapes_is_refused(reference):
    tx = transforms.project_conflicting()
    g = -jnp.ones(3)
    with pytest.raises(ValueError, match="reference must have the shapes"):
        tx.update(g, tx.init(g), g, reference=reference)


def test_what_does_not_take_part_may_be_infinite():
    tx = transforms.project_conflicting()
    g, r = jnp.array([1.0, 1.0]), jnp.array([jnp.inf, 0.0])
    np.testing.assert_array_equal(tx.update(g, tx.init(g), g, reference=r)[0], g)
    tx = transforms.mask_updates()
    u, m = jnp.array([jnp.inf, jnp.nan, 2.0]), jnp.array([0.0, 0.0, 0.5])
    np.testing.assert_array_equal(tx.update(u, tx.init(u), u, mask=m)[0], [0, 0, 1])


def test_weighted_means_are_over_the_weights():
    """Weights that sum to less than one, and none at all."""
    for weight, wanted in (([0.25, 0.25], 1.0), ([3.0, 1.0], 1.0), ([0.0, 0.0], 0.0)):
        weight = jnp.array(weight)
        ones, zeros = jnp.ones((2, 3)), jnp.zeros((2, 3))
        error = jaxcl.losses.squared_error(ones, zeros, weight)
        np.testing.assert_allclose(error, wanted)
        divergence = jaxcl.losses.soft_divergence(
            jnp.array([[1.0, 0.0]] * 2),
            jnp.array([[0.0, 1.0]] * 2),
            temperature=1.0,
            mask=jnp.ones((1, 2), bool),
            weight=weight,
        )
        kl = (np.e - 1) / (np.e + 1)  # Σ p log p/q of softmax(0, 1) and softmax(1, 0)
        np.testing.assert_allclose(divergence, wanted * kl, rtol=1e-6)


def test_gradients_have_the_dtype_of_what_they_are_of():
    """Parameters in bfloat16 on float32 inputs, as in a loop with momentum."""
    net = {
        "k": jnp.ones((3, 3, 1, 4), jnp.bfloat16),
        "b": jnp.ones(4, jnp.bfloat16),
        "d": jnp.ones((3, 3, 4), jnp.bfloat16),
    }

    def loss(net, x):
        y = jaxcl.nn.conv(x, net["k"], net["b"], name="c")
        return depthwise(y, net["d"]).sum().astype(jnp.float32)

    for kind in (jnp.float32, jnp.bfloat16):
        x = jnp.ones((2, 8, 8, 1), kind)
        grads, dx = jax.grad(loss, (0, 1))(net, x)
        assert {g.dtype for g in grads.values()} == {jnp.dtype(jnp.bfloat16)}
        assert dx.dtype == kind
    assert jax.grad(loss)(net | {"d": jnp.ones((3, 3, 4))}, x)["d"].dtype == jnp.float32


def test_scenarios_that_cannot_be_made_are_told():
    build = {"num_outputs": 4, "heads": (("w",),)}
    for options, told in (
        ({"scenario": "foo", "num_tasks": 3}, "scenario must be one of"),
        ({"scenario": "task", "num_tasks": 0}, "num_tasks must be at least 1"),
        ({"scenario": "task", "num_tasks": 3}, "cannot be split evenly over 3 tasks"),
        ({"num_outputs": 1, "num_tasks": 1}, "at least 2, got 1"),
        *(
            ({"scenario": kind, "num_tasks": 3, "classes_per_task": given}, told)
            for kind, given, told in (
                ("task", (1, 1, 1), r"with the sum 4, got \[1, 1, 1\]"),
                ("class", (4, 0, 0), "3 numbers of at least 1"),
                ("class", (2, 2), "3 numbers of at least 1"),
                ("domain", (2, 1, 1), "needs scenario task or class"),
            )
        ),
    ):
        with pytest.raises(ValueError, match=told):
            jaxcl.setup_for(
                lambda net, x: x @ net["w"],
                jnp.zeros((2, 3)),
                net={"w": jnp.zeros((3, options.get("num_outputs", 4)))},
                **(build | options),
            )
