"""OL: the orthogonal loss, by hand in float64, and which layers train when."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from states import after_each_task

import jaxcl
from jaxcl.nn import models
from jaxcl.nn.capture import init_fn
from jaxcl.ops.orthogonal import orthogonal_loss, top_eigenvalue
from jaxcl.strategies import ol
from jaxcl.strategies.ol import stages_of
from jaxcl.training.problem import make_setup

FORMS = [
    ("spectral", "examples"),
    ("frobenius", "examples"),
    ("rows", "examples"),
    ("rows", "features"),
]


def by_hand(y, norm, of):
    """The loss and its gradient, float64."""
    b = len(y)
    if norm == "rows":
        rows = y if of == "examples" else y.T
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        r = rows / length
        loss = np.sum((r @ r.T - np.eye(len(r))) ** 2) / len(r)
        dr = 4 * (r @ r.T - np.eye(len(r))) @ r / len(r)
        grad = (dr - r * np.sum(dr * r, 1, keepdims=True)) / length
        return loss, grad if of == "examples" else grad.T
    u, s, _ = np.linalg.svd(y)
    scale = s[0] ** 2 if norm == "spectral" else np.sum(s**2)
    dscale = 2 * (np.outer(u[:, 0], u[:, 0]) @ y if norm == "spectral" else y)
    k = y @ y.T
    loss = np.sum((k / scale - np.eye(b)) ** 2) / b
    by_scale = -2 * np.sum(k * k) / scale**3 + 2 * np.trace(k) / scale**2
    return loss, (4 * k @ y / scale**2 - 4 * y / scale + by_scale * dscale) / b


@pytest.mark.parametrize("shape", [(16, 40), (32, 10), (8, 8)])
@pytest.mark.parametrize("norm,of", FORMS)
def test_loss_and_gradient_equal_float64(norm, of, shape):
    y = np.maximum(np.random.default_rng(0).normal(size=shape) + 0.3, 0)
    loss, grad = jax.jit(
        jax.value_and_grad(lambda y: orthogonal_loss(y, norm=norm, of=of))
    )(jnp.asarray(y, jnp.float32))
    exact, exact_grad = by_hand(y, norm, of)
    np.testing.assert_allclose(loss, exact, rtol=1e-5)
    error = np.linalg.norm(grad - exact_grad) / np.linalg.norm(exact_grad)
    assert error <= 1e-5


@pytest.mark.parametrize("norm,of", FORMS)
def test_gradient_is_the_derivative_of_the_loss(norm, of):
    y = np.random.default_rng(1).normal(size=(6, 9))
    with jax.enable_x64(True):
        check_grads(
            lambda y: orthogonal_loss(y, norm=norm, of=of),
            (jnp.asarray(y),),
            order=1,
            modes=("rev",),
        )


def test_top_eigenvalue_of_close_and_equal_ones():
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(20, 20)))[0]
    for second in (0.5, 0.99, 0.9999, 1.0):
        values = np.r_[3.0, 3.0 * second, np.linspace(2.5, 0, 18) * second]
        gram = jnp.asarray((q * values) @ q.T, jnp.float32)
        np.testing.assert_allclose(jax.jit(top_eigenvalue)(gram), 3.0, rtol=2e-5)
    assert top_eigenvalue(jnp.zeros((5, 5))) == 0


@pytest.mark.parametrize("norm,of", FORMS)
def test_a_dead_layer_has_loss_1_and_no_gradient(norm, of):
    loss, grad = jax.value_and_grad(lambda y: orthogonal_loss(y, norm=norm, of=of))(
        jnp.zeros((8, 5))
    )
    assert loss == 1
    assert not grad.any()


@pytest.mark.parametrize("norm,of", FORMS)
def test_examples_of_weight_0_do_not_count(norm, of):
    y = jnp.asarray(np.random.default_rng(3).normal(size=(8, 12)), jnp.float32)
    weight = jnp.asarray([1, 1, 1, 1, 1, 1, 0, 0], jnp.float32)
    padded = orthogonal_loss(y, norm=norm, of=of, weight=weight)
    assert np.isfinite(orthogonal_loss(y, norm=norm, of=of, weight=0 * weight))
    alone = orthogonal_loss(y[:6], norm=norm, of=of)
    np.testing.assert_allclose(padded, alone, rtol=1e-5)


def test_forms_there_are_not():
    y = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="spectral, frobenius, rows, got 'nuclear'"):
        orthogonal_loss(y, norm="nuclear")
    with pytest.raises(ValueError, match="goes with norm='rows', got norm='spectral'"):
        orthogonal_loss(y, of="features")


# In training ----------------------------------------------------------------


def make_setup_of(model, shape=(8, 6), tasks=2):
    of = dict(num_outputs=2 * tasks, num_tasks=tasks, scenario="task")
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jaxcl.setup_for_linen(model, example, heads=(("head",),), **of)


def test_steps_equal_float64_in_a_compiled_loop():
    """Two hidden layers and a head, one stage each, SGD with momentum."""
    model = models.MLP((7, 5), 4)
    setup = make_setup_of(model)
    method = ol(setup, extractor=2 / 3)
    net, _ = init_fn(model, setup.example)(jax.random.key(0))
    params = jaxcl.init_params(method, jax.random.key(1), net)
    loss = jaxcl.transform_loss(method, setup)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1, momentum=0.9), setup)
    rng = np.random.default_rng(4)
    steps, b = 12, 8
    x = rng.normal(size=(steps, b, 6)) + 0.5
    y = rng.integers(0, 2, (steps, b))

    @jax.jit
    def train(params, opt_state, x, y):
        def body(i, carry):
            params, opt_state = carry
            ctx = jaxcl.context(x[i], y[i], task=0, step=i, task_progress=i / steps)
            grads, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
            u, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
            return optax.apply_updates(params, u), opt_state

        return jax.lax.fori_loop(0, steps, body, (params, opt_state))[0]

    trained = train(params, tx.init(params), jnp.asarray(x, jnp.float32), y).net

    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), net)
    velocity = jax.tree.map(np.zeros_like, w)
    names = ("hidden_0", "hidden_1", "head")
    for i in range(steps):
        h, inputs = x[i], []
        for name in names[:2]:
            inputs.append(h)
            h = np.maximum(h @ w[name]["kernel"] + w[name]["bias"], 0)
        inputs.append(h)
        stage = i * 3 // steps
        if stage < 2:
            out = inputs[stage + 1]
            d = by_hand(out, "spectral", "examples")[1] * (out > 0)
        else:
            z = (h @ w["head"]["kernel"] + w["head"]["bias"])[:, :2]
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            d = np.pad((p - np.eye(2)[y[i]]) / b, ((0, 0), (0, 2)))
        now = names[stage]
        grads = jax.tree.map(np.zeros_like, w)
        grads[now] = {"kernel": inputs[stage].T @ d, "bias": d.sum(0)}
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        w[now] = jax.tree.map(lambda a, v: a - 0.1 * v, w[now], velocity[now])
    for name in names:
        for leaf in ("kernel", "bias"):
            moved = w[name][leaf] - np.asarray(net[name][leaf], np.float64)
            ours = np.asarray(trained[name][leaf], np.float64) - net[name][leaf]
            assert np.linalg.norm(moved) > 1e-3
            assert np.linalg.norm(ours - moved) <= 2e-4 * np.linalg.norm(moved)


@pytest.mark.parametrize("on", ["post", "pre"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("build", ["mlp", "alexnet"])
def test_one_layer_trains_at_a_time(build, norm, on):
    if build == "mlp":
        model, shape = models.MLP((9, 7), 4, norm=norm, dropout=0.2), (8, 6)
    else:
        model, shape = models.AlexNet(4, 1 / 16, norm=norm), (8, 32, 32, 3)
    setup = make_setup_of(model, shape)
    method = ol(setup, on=on)
    net, statistics = init_fn(model, setup.example)(jax.random.key(0))
    params = jaxcl.init_params(method, jax.random.key(1), net)
    loss = jaxcl.transform_loss(method, setup)
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    tx = jaxcl.transform_optimizer(method, inner, setup)
    x = jax.random.normal(jax.random.key(2), shape)
    y = jnp.arange(8) % 2
    traces = []

    @jax.jit
    def step(params, opt_state, progress):
        traces.append(1)
        ctx = jaxcl.context(
            x, y, task=0, task_progress=progress, model_state=statistics
        )
        grads, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, u), opt_state, out

    opt_state = tx.init(params)
    stages = stages_of(setup)
    for number in range(len(stages) + 1):
        progress = jnp.float32(0.5 * (number + 0.5) / len(stages))
        if number == len(stages):
            progress = jnp.float32(0.75)
        new, opt_state, out = step(params, opt_state, progress)
        moved = {
            jax.tree_util.keystr(path)
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(params.net),
                jax.tree.leaves(new.net),
                strict=True,
            )
            if (a != b).any()
        }
        if number < len(stages):
            s = stages[number]
            own = tuple(f"['{p[0]}']" for p in s.prefixes)
        else:
            own = ("['head']",)
            chex.assert_trees_all_equal(out.model_state, statistics)
        assert moved and all(m.startswith(own) for m in moved), (number, moved)
        if number < len(stages):
            assert f"['{stages[number].layer.name}']['kernel']" in moved
        params = new
    assert len(traces) == 1


def test_the_extractor_reads_no_label(problem):
    """Exchanging labels within a task does not change a bit of the extractor."""

    def ends(exchange):
        p = problem("ol")
        base = p.stream.base
        if exchange:
            # Classes 2t and 2t + 1 are task t's.
            base = base._replace(train_y=base.train_y ^ 1)
        p = p._replace(stream=p.stream._replace(base=base))
        return after_each_task(p)[-1].params.net

    plain, exchanged = ends(False), ends(True)
    assert (plain["head"]["kernel"] != exchanged["head"]["kernel"]).any()
    del plain["head"], exchanged["head"]
    chex.assert_trees_all_equal(plain, exchanged)


def test_later_tasks_train_the_extractor_or_leave_it(problem):
    for later in ("train", "freeze"):
        p = problem("ol", {"later": later}, seeds=(0,))
        after = [state.params.net for state in after_each_task(p)]
        same = (after[0]["hidden_0"]["kernel"] == after[1]["hidden_0"]["kernel"]).all()
        assert same == (later == "freeze")
        assert (after[0]["head"]["kernel"] != after[1]["head"]["kernel"]).any()


def test_a_layer_that_dies_is_reported():
    model = models.MLP((7, 5), 4)
    setup = make_setup_of(model)
    method = ol(setup)
    net, _ = init_fn(model, setup.example)(jax.random.key(0))
    net["hidden_1"]["bias"] = jnp.full(5, -100.0)
    x = jax.random.normal(jax.random.key(1), (20, 6))
    data = jaxcl.array_data(x, jnp.arange(20) % 2, 0)
    params = jaxcl.init_params(method, jax.random.key(2), net)
    _, state = method.after_task(
        params,
        method.init(params),
        data=data,
        model_state={},
        task=jnp.int32(0),
        key=jax.random.key(3),
    )
    report = method.report(state)
    assert report["dead"]["hidden_1"] == 1
    assert report["orthogonal_loss"]["hidden_1"] == 1
    below = jax.tree.map(np.float64, net["hidden_0"])
    h = np.maximum(np.asarray(x, np.float64) @ below["kernel"] + below["bias"], 0)
    exact = by_hand(h, "spectral", "examples")[0]
    np.testing.assert_allclose(report["orthogonal_loss"]["hidden_0"], exact, rtol=1e-4)
    assert report["dead"]["hidden_0"] == np.mean((h == 0).all(1))


def test_what_ol_refuses(problem):
    setup = make_setup_of(models.MLP((7,), 4))
    for settings, message in (
        ({"norm": "trace"}, "got 'trace'"),
        ({"on": "mid"}, "on must be one of post, pre, got 'mid'"),
        ({"later": "stop"}, "later must be one of train, freeze, got 'stop'"),
        ({"extractor": 1.5}, "extractor must lie in .0, 1.*, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            ol(setup, **settings)
    with pytest.raises(
        ValueError, match="one after another: layer 'block_0_0_b'|'stem'"
    ):
        ol(make_setup_of(models.ResNet18(4, 2), (2, 8, 8, 3)))
    with pytest.raises(ValueError, match="a layer before it"):
        ol(make_setup_of(models.Linear(4)))
    plain = make_setup(problem().model, problem().stream, 4)
    method = ol(plain)
    net, _ = init_fn(problem().model, plain.example)(jax.random.key(0))
    net["scale"] = jnp.ones(())
    with pytest.raises(ValueError, match="which layer parameter 'scale' belongs to"):
        method.init(jaxcl.types.Params(net, {}))
