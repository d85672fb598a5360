"""Models that are not Linen's: past silent errors, and what is refused by name."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import alone
from flax import nnx

import jaxcl
from jaxcl.nn import capture, models
from jaxcl.nn.products import Tag
from jaxcl.ops.linalg import span_update
from jaxcl.strategies import agem, ewc, frozen, gpm, hat, mas, owm, si
from jaxcl.types import LayerSpec, Output

KEY = jax.random.key(0)
X, Y = jax.random.normal(jax.random.key(1), (12, 6)), jnp.arange(12) % 2
NET = {
    "body": {"kernel": jax.random.normal(KEY, (6, 5)), "bias": jnp.zeros(5)},
    "out": {"kernel": jax.random.normal(KEY, (5, 4)), "bias": jnp.zeros(4)},
}
OF = dict(num_outputs=4, num_tasks=2, scenario="task")


def by_hand(net, x):
    h = jnp.tanh(x @ net["body"]["kernel"] + net["body"]["bias"])
    return h @ net["out"]["kernel"] + net["out"]["bias"]


def tagged(net, x):
    p, q = net["body"], net["out"]
    h = jnp.tanh(jaxcl.nn.dense(x, p["kernel"], p["bias"], name="body"))
    return jaxcl.nn.dense(h, q["kernel"], q["bias"], name="out")


def spec(name, d_in, n_out, feeds_on, **fields):
    return LayerSpec(
        **dict(
            name=name,
            kind="dense",
            path=(name, "kernel"),
            strides=(1, 1),
            padding="VALID",
            window=(1, 1),
            d_in=d_in,
            n_out=n_out,
            bias=True,
            feeds_on=feeds_on,
            refusal="",
        )
        | fields
    )


LAYERS = (spec("body", 6, 5, ()), spec("out", 5, 4, ("body",)))


def setup_of(forward=tagged, heads=(("out",),), **options):
    found = OF | dict(heads=heads) | options
    return jaxcl.setup_for(forward, X, **found)


def step(method, setup, net=NET, task=0, state=None, jit=True, **moment):
    params = jaxcl.init_params(method, KEY, net)
    loss, tx = alone(method, optax.sgd(0.1), setup)
    opt_state = tx.init(params)
    if state is not None:
        opt_state = opt_state._replace(strategy=state)

    def one(params, opt_state):
        y = Y + 2 * task if setup.mask_by == "example" else Y
        ctx = jaxcl.context(X, y, task=task, **({"epoch_progress": 0.0} | moment))
        grads, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        return tx.update(grads, opt_state, params, ctx=ctx, out=out)[0]

    return (jax.jit(one) if jit else one)(params, opt_state).net


def consolidated(method, setup, net=NET, x=X):
    params = jaxcl.init_params(method, KEY, net)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
    data = jaxcl.array_data(x, Y, 0)
    return jaxcl.after_task(method, params, tx.init(params), data, task=0)[1].strategy


def prepared(method, state, x):
    data = jaxcl.array_data(x, Y + 2, 1)
    return method.before_task((), state, data=data, model_state={}, task=1)


def test_hat_refuses_a_function_that_it_cannot_gate():
    setup = setup_of(by_hand, layers=LAYERS)
    with pytest.raises(ValueError, match="layer 'body' is to be treated, but"):
        step(hat(setup), setup)


def test_hat_gates_a_plain_function():
    setup = setup_of(net=NET)
    method = hat(setup)
    open_, aux = step(method, setup), jaxcl.init_params(method, KEY, NET).aux
    assert aux.keys() == {"body"}
    params = jaxcl.init_params(method, KEY, NET)
    shut = params._replace(aux=jax.tree.map(lambda e: e - 100, params.aux))
    loss = jaxcl.transform_loss(method, setup)
    ctx = jaxcl.context(X, Y, task=0, epoch_progress=1.0)
    out = loss(shut, method.init(shut), ctx)[1]
    np.testing.assert_allclose(
        out.logits, jnp.broadcast_to(NET["out"]["bias"], (12, 4)), atol=1e-6
    )
    assert np.abs(open_["body"]["kernel"]).max() > 0


def tapping(net, state, x, task, key, train):
    """A user's own apply function, which returns its layers' inputs itself."""
    h = jnp.tanh(x @ net["body"]["kernel"] + net["body"]["bias"])
    logits = h @ net["out"]["kernel"] + net["out"]["bias"]
    return Output(logits, state, {"body": x, "out": h})


def test_gpm_never_projects_nothing():
    wide = NET | {"body": {"kernel": jnp.ones((6, 40)), "bias": jnp.zeros(40)}}
    wide["out"] = {"kernel": jax.random.normal(KEY, (40, 4)), "bias": jnp.zeros(4)}
    layers = (spec("body", 6, 40, ()), spec("out", 40, 4, ("body",)))
    setup = setup_of(by_hand, layers=layers)._replace(apply_fn=tapping)
    few = jnp.ones((12, 6)).at[:, 1].set(X[:, 0])
    method = gpm(setup, threshold=0.999)
    state = consolidated(method, setup, wide, few)
    with pytest.raises(ValueError, match="layer 'body' is to be treated, but"):
        step(method, setup, wide, 1, state)
    method = gpm(setup, threshold=0.999, form="gradient")
    update = step(method, setup, wide, 1, state)["body"]["kernel"]
    inside = state.basis["body"].T @ update
    assert 0 < np.abs(inside).max() + 1e-9 < 1e-6 < np.abs(update).max()


@pytest.mark.parametrize(
    "build", [functools.partial(gpm, threshold=0.9), owm], ids=["gpm", "owm"]
)
def test_a_layer_that_has_no_tap_is_named(build):
    setup = setup_of(by_hand, layers=LAYERS)
    method = build(setup, where="updates")
    with pytest.raises(ValueError, match="has to see the input of layer 'body'"):
        step(method, setup)
        consolidated(method, setup)


class Classifier(nn.Module):
    """A Linen model whose classifier is not called head."""

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.relu(nn.Dense(5, name="body")(x))
        return nn.Dense(4, name="out")(x)


def linen_setup(heads=(("head",),), model=None):
    of = dict(num_outputs=4, num_tasks=2, scenario="task")
    return jaxcl.setup_for_linen(model or Classifier(), X, heads=heads, **of)


@pytest.mark.parametrize("build", [frozen, functools.partial(gpm, threshold=0.9)])
def test_a_head_that_matches_nothing_is_an_error(build):
    with pytest.raises(ValueError, match="heads: 'head' matches no parameter; there"):
        linen_setup()
    with pytest.raises(ValueError, match="heads: 'head' matches no parameter"):
        setup_of(net=NET, heads=(("head",),))
    setup = setup_of(heads=(("head",),), layers=LAYERS)  # no parameters to check yet
    with pytest.raises(ValueError, match="heads: 'head' matches no parameter"):
        step(build(setup), setup)
    linen_setup((("out",),))


def test_a_head_is_found_in_a_list():
    net = {"layers": [{"w": jnp.ones((6, 5))}, {"w": jnp.ones((5, 4))}]}

    def forward(net, x):
        return jnp.tanh(x @ net["layers"][0]["w"]) @ net["layers"][1]["w"]

    setup = setup_of(forward, heads=(("layers", 1),))
    moved = step(frozen(setup), setup, net, task=1)
    assert not moved["layers"][0]["w"].any() and moved["layers"][1]["w"].any()


def turned(net, x):
    h = jnp.tanh(jaxcl.nn.dense(x, net["body"]["w"], name="body", axis=0))
    return jaxcl.nn.dense(h, net["out"]["w"], name="out", axis=0)


TURNED = {"body": {"w": NET["body"]["kernel"].T}, "out": {"w": NET["out"]["kernel"].T}}


def test_a_kernel_laid_out_outputs_first_is_projected_on_its_inputs():
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 2)))
    kernel = jax.random.normal(KEY, (6, 6))  # square: its shape does not show the axis
    tx = jaxcl.transforms.project_out(axis=0)
    got, _ = tx.update(kernel, tx.init(kernel), subspace=jnp.asarray(u))
    np.testing.assert_allclose(got, kernel - kernel @ u @ u.T, atol=1e-6)
    tx = jaxcl.transforms.project_onto(axis=0)
    p = jnp.asarray(np.eye(6) - u @ u.T)
    got, _ = tx.update(kernel, tx.init(kernel), projector=p)
    np.testing.assert_allclose(got, kernel @ p, atol=1e-6)
    conv = jax.random.normal(KEY, (3, 6, 2, 2))  # OIHW
    wide, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 2)))
    got = jaxcl.ops.projection.remove(conv, jnp.asarray(wide), axis=0)
    flat = conv.reshape(3, 24)
    np.testing.assert_allclose(
        got.reshape(3, 24), flat - flat @ wide @ wide.T, atol=1e-6
    )


def test_a_subspace_that_fits_another_axis_says_so():
    tx = jaxcl.transforms.project_out()
    with pytest.raises(ValueError, match="with axis=0 it does"):
        tx.update(jnp.ones((3, 6)), tx.init(None), subspace=jnp.ones((6, 2)))


@pytest.mark.parametrize("name", ["gpm", "owm", "hat", "ewc"])
def test_outputs_first_gives_the_same_update(name):
    build = {
        "gpm": functools.partial(gpm, threshold=0.9),
        "owm": owm,
        "hat": hat,
        "ewc": functools.partial(ewc, strength=1.0),
    }[name]
    bare = {k: {"kernel": v["kernel"]} for k, v in NET.items()}

    def forward(net, x):
        h = jnp.tanh(jaxcl.nn.dense(x, net["body"]["kernel"], name="body"))
        return jaxcl.nn.dense(h, net["out"]["kernel"], name="out")

    last, first = setup_of(forward, net=bare), setup_of(turned, net=TURNED, axis=0)
    one, other = build(last), build(first)
    want = step(one, last, bare, 1, consolidated(one, last, bare))
    got = step(other, first, TURNED, 1, consolidated(other, first, TURNED))
    assert np.abs(want["body"]["kernel"]).max() > 1e-6
    for layer in ("body", "out"):
        np.testing.assert_allclose(
            got[layer]["w"].T, want[layer]["kernel"], rtol=1e-4, atol=1e-6
        )


def test_other_tasks_outputs_stand_still_outputs_first():
    setup = setup_of(turned, net=TURNED, axis=0)
    method = jaxcl.strategy()
    tx = jaxcl.transform_optimizer(
        method, optax.chain(optax.add_decayed_weights(1.0), optax.sgd(0.1)), setup
    )
    params = jaxcl.init_params(method, KEY, TURNED)
    ctx = jaxcl.context(X, Y, task=0, epoch_progress=0.0)
    grads, out = jax.grad(jaxcl.transform_loss(method, setup), has_aux=True)(
        params, (), ctx
    )
    update, _ = tx.update(grads, tx.init(params), params, ctx=ctx, out=out)
    rows = np.abs(update.net["out"]["w"]).max(1)
    assert (rows[:2] > 0).all() and not rows[2:].any()


def test_outputs_on_another_axis_than_said_are_refused():
    net = {"body": NET["body"], "out": {"w": jnp.ones((4, 5)), "bias": jnp.ones(4)}}

    def forward(net, x):
        h = jnp.tanh(x @ net["body"]["kernel"] + net["body"]["bias"])
        return h @ net["out"]["w"].T + net["out"]["bias"]

    setup = setup_of(forward)
    with pytest.raises(ValueError, match="out/w has the 4 outputs on another axis"):
        step(jaxcl.strategy(), setup, net)
    step(jaxcl.strategy(), setup_of(forward, axis=0), net)


def test_no_index_no_cache():
    """A cache of projected inputs is not read for examples that are not in it."""
    wide = {
        "body": {"kernel": jnp.ones((6, 40)) + NET["body"]["kernel"][:, :1]},
        "out": {"kernel": jax.random.normal(KEY, (40, 4))},
    }

    def forward(net, x):
        h = jnp.tanh(jaxcl.nn.dense(x, net["body"]["kernel"], name="body"))
        return jaxcl.nn.dense(h, net["out"]["kernel"], name="out")

    setup = setup_of(forward, net=wide)
    method = gpm(setup, threshold=0.5)
    state = consolidated(method, setup, wide)
    others = jax.random.normal(jax.random.key(9), X.shape)
    cache = prepared(method, state, others)
    assert cache.inputs
    fresh = step(method, setup, wide, 1, state)
    cached = step(method, setup, wide, 1, state, cache=cache)
    np.testing.assert_allclose(
        cached["body"]["kernel"], fresh["body"]["kernel"], atol=1e-6
    )
    own = prepared(method, state, X)
    known = step(method, setup, wide, 1, state, cache=own, index=jnp.arange(12))
    np.testing.assert_allclose(
        known["body"]["kernel"], fresh["body"]["kernel"], atol=1e-6
    )


def test_a_floating_point_data_set_keeps_its_values(blobs):
    rng = np.random.default_rng(0)
    floats = blobs._replace(
        train_x=rng.normal(size=blobs.train_x.shape).astype(np.float32),
        test_x=rng.normal(size=blobs.test_x.shape).astype(np.float32),
        max_value=1,
    )
    stream = jaxcl.data.scenarios.make_stream(
        floats, (0,), kind="split", scenario="task", num_tasks=3
    )
    mine = jax.tree.map(lambda a: a[0], stream.per_seed)
    x = stream.view(stream.base, mine, "train", 0).take(jnp.arange(20)).x
    kept = stream.codec.decode(stream.codec.encode(x))
    assert len(np.unique(kept)) > 100
    np.testing.assert_array_equal(kept, x)


def test_bfloat16_subspaces():
    samples = jax.random.normal(KEY, (6, 3)).astype(jnp.bfloat16)
    basis, count = span_update(
        jnp.zeros((6, 6), jnp.bfloat16), 0, samples, 0.999, crossing=True
    )
    assert basis.dtype == jnp.bfloat16 and int(count) == 3
    exact, _ = span_update(
        jnp.zeros((6, 6)), 0, samples.astype(jnp.float32), 0.999, crossing=True
    )
    np.testing.assert_allclose(basis.astype(jnp.float32), exact, atol=4e-3)
    by_row, _ = span_update(
        jnp.zeros((6, 6)), 0, samples.T, 0.999, crossing=True, axis=1
    )
    np.testing.assert_allclose(by_row, exact, atol=1e-6)


@pytest.mark.parametrize("build", [ewc, mas, si])
def test_penalties_of_a_bfloat16_network(build):
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), NET)
    setup = setup_of(by_hand)
    method = build(setup, strength=1.0)
    state = consolidated(method, setup, narrow)
    kept = [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert set(kept) == {jnp.dtype("float32")}
    update = step(method, setup, narrow, 1, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(update)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_update_leaves_in_the_dtype_it_came_in(dtype):
    g = {"w": jax.random.normal(KEY, (6, 5)).astype(dtype)}
    against = {"w": -g["w"].astype(jnp.float32)}
    basis = {"w": jnp.eye(6)[:, :2]}
    cases = [
        (jaxcl.transforms.project_conflicting(), {"reference": against}),
        (jaxcl.transforms.project_out(), {"subspace": basis}),
        (jaxcl.transforms.project_onto(), {"projector": {"w": jnp.eye(6)}}),
        (jaxcl.transforms.mask_updates(), {"mask": {"w": jnp.ones(5)}}),
        (jaxcl.transforms.compensate(400.0), {"s": jnp.float32(2.0)}),
    ]
    for tx, extra in cases:

        def body(carry, _, tx=tx, extra=extra):
            return tx.update(carry, tx.init(g), g, **extra)[0], None

        out, _ = jax.lax.scan(body, g, jnp.arange(2))
        assert out["w"].dtype == dtype


def test_a_missing_extra_argument_is_named():
    g = jnp.ones((3, 2))
    t = jaxcl.transforms
    for tx, name in [
        (t.project_out(), "subspace"),
        (t.project_onto(), "projector"),
        (t.project_conflicting(), "reference"),
        (t.mask_updates(), "mask"),
        (t.compensate(400.0), "s"),
    ]:
        told = f"needs the extra argument {name}: .*given: subspce="
        with pytest.raises(ValueError, match=told):
            tx.update(g, tx.init(g), g, subspce=g)
    with pytest.raises(ValueError, match="reference must be a tree like the updates"):
        tx = t.project_conflicting()
        tx.update({"a": g}, tx.init(g), g, reference={"b": g})
    with pytest.raises(ValueError, match="subspace must be a tree like the updates"):
        tx = t.project_out()
        tx.update({"a": g}, tx.init(g), g, subspace={"b": g})
    with pytest.raises(ValueError, match="one value where the updates have a dict"):
        tx.update({"a": g}, tx.init(g), g, subspace=jnp.eye(3))
    mask = t.mask_updates()
    got, _ = mask.update({"a": g, "b": g}, mask.init(g), g, mask={"a": 0.0, "b": 1.0})
    np.testing.assert_array_equal(got["a"], 0 * g)


def test_masked_transforms():
    """`optax.masked` hides leaves from the updates, not from extra arguments."""
    g = {"a": jnp.array([1.0, 0.0]), "b": jnp.ones(2)}
    against = {"a": jnp.array([-1.0, 1.0]), "b": -jnp.ones(2)}
    only = optax.masked(jaxcl.transforms.project_conflicting(), {"a": True, "b": False})
    got, _ = only.update(g, only.init(g), g, reference=against)
    np.testing.assert_allclose(got["a"], [0.5, 0.5])  # by hand, of a alone
    np.testing.assert_array_equal(got["b"], g["b"])
    kernels = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    u = jnp.array([[1.0], [0.0]])
    only = optax.masked(jaxcl.transforms.project_out(), {"a": True, "b": False})
    got, _ = only.update(kernels, only.init(kernels), subspace={"a": u, "b": u})
    assert got["a"].tolist() == [[0, 0], [1, 1]] and got["b"].all()


def test_a_model_with_another_signature_is_refused():
    with pytest.raises(ValueError, match=r"fails on inputs .* \(net, x\)"):
        setup_of(lambda net: net, net=NET)
    with pytest.raises(ValueError, match=r"logits \[B, 4\], on inputs \[12, 6\]"):
        setup_of(lambda net, x: x, net=NET)
    line = r"<lambda> fails on inputs \[12, 6\]: .* shapes.*\(test_any_model.py:\d+\)$"
    with pytest.raises(ValueError, match=line):  # JAX names no one's shapes
        setup_of(lambda net, x: x + jnp.ones((3, 5)), net=NET)


@pytest.mark.parametrize("y, task", [(-1, 0), (4, 0), (0, -1), (0, 2)])
def test_labels_and_tasks_out_of_range(y, task):
    setup = setup_of(net=NET)
    labels = jnp.full(12, y)
    told = "must lie in"
    with pytest.raises(ValueError, match=told):
        jaxcl.array_data(X, labels, task, setup=setup)
    with pytest.raises(ValueError, match=told):
        jaxcl.context(X, labels, task=task, setup=setup)
    loss = jaxcl.transform_loss(jaxcl.strategy(), setup)
    params = jaxcl.init_params(jaxcl.strategy(), KEY, NET)
    with pytest.raises(ValueError, match=told):
        loss(params, (), jaxcl.context(X, labels, task=task))
    if min(y, task) < 0:
        with pytest.raises(ValueError, match=told):
            jaxcl.array_data(X, labels, task)


def test_nan_protects_nothing_and_is_refused():
    bad = jnp.ones((3, 2)).at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="must be finite, got 1"):
        span_update(jnp.zeros((3, 3)), 0, bad, 0.9, crossing=True)


def test_si_refuses_an_optimizer_that_gathers_steps():
    setup = setup_of(net=NET)
    method = si(setup, strength=1.0)
    every = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    tx = jaxcl.transform_optimizer(method, every, setup)
    with pytest.raises(ValueError, match="optax.MultiSteps"):
        tx.init(jaxcl.init_params(method, KEY, NET))


class Normalised(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x))))


def test_running_statistics_that_were_not_given_are_missed():
    """EWC's Fisher would be that of statistics that start anew at every step."""
    model = Normalised(nnx.Rngs(0))
    setup = jaxcl.setup_for_nnx(model, X, heads=(("head",),), **OF)
    net, state = jaxcl.nn.nnx.split(model)
    method = ewc(setup, strength=1.0, samples=4)
    params = jaxcl.init_params(method, KEY, net)
    opt_state = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)
    loss = jaxcl.transform_loss(method, setup)
    with pytest.raises(ValueError, match="keeps running statistics"):
        loss(params, opt_state.strategy, jaxcl.context(X, Y, task=0))
    data = jaxcl.array_data(X, Y)
    with pytest.raises(ValueError, match="keeps running statistics"):
        jaxcl.after_task(method, params, opt_state, data, task=0)
    ctx = jaxcl.context(X, Y, task=0, model_state=state)
    assert jnp.isfinite(loss(params, opt_state.strategy, ctx)[0])
    jaxcl.after_task(method, params, opt_state, data, task=0, model_state=state)


class Forgetful(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(self.num_outputs, name="head")(x)


def test_a_flax_mistake_is_one_line():
    model = Forgetful(4)
    net, state = capture.init_fn(model, jax.typeof(X))(KEY)
    with pytest.raises(ValueError, match="Forgetful, train=False: Cannot update") as e:
        capture.apply_fn(model)(net, state, X, Y, KEY, False)
    assert len(str(e.value).splitlines()) == 1


def test_flax_collections_beside_params_are_not_trained():
    net = {"params": NET, "batch_stats": {"mean": jnp.zeros(3)}}
    with pytest.raises(ValueError, match="collection batch_stats beside params"):
        setup_of(lambda net, x: tagged(net["params"], x), net=net)


def test_a_parameter_that_is_no_array_is_named():
    with pytest.raises(ValueError, match="parameter 'act' is of .*, which cannot"):
        jaxcl.init_params(jaxcl.strategy(), KEY, {"act": jax.nn.relu})


@pytest.mark.parametrize("where", ["jit", "checkpoint", "scan"])
def test_a_layer_inside_another_transformation_is_named(where):
    def layer(x, kernel):
        return jaxcl.nn.dense(x, kernel, name="body")

    def scanned(x, kernel):
        return jax.lax.scan(lambda h, _: (layer(h, kernel), None), x, jnp.arange(1))[0]

    wrap = {"jit": jax.jit(layer), "checkpoint": jax.checkpoint(layer), "scan": scanned}
    out = jax.random.normal(KEY, (6, 4))
    net = {"body": {"kernel": jnp.eye(6)}, "out": {"kernel": out}}

    def forward(net, x):
        h = jnp.tanh(wrap[where](x, net["body"]["kernel"]))
        return jaxcl.nn.dense(h, net["out"]["kernel"], name="out")

    setup = setup_of(forward, net=net)
    refused = {layer.name: layer.refusal for layer in setup.layers}
    assert "inside jit, scan, checkpoint" in refused["body"] and not refused["out"]
    with pytest.raises(ValueError, match="cannot treat layer 'body'"):
        gpm(setup, threshold=0.9)
    assert step(ewc(setup, strength=1.0), setup, net)["body"]["kernel"].any()


def test_a_layer_inside_vmap_is_met_with_all_examples():
    def single(net, x):
        return jax.vmap(lambda row: tagged(net, row))(x)

    whole, one_by_one = setup_of(net=NET), setup_of(single, net=NET)
    assert [layer._replace() for layer in one_by_one.layers] == list(whole.layers)
    for build in (functools.partial(gpm, threshold=0.9), owm, hat):
        a, b = build(whole), build(one_by_one)
        want = step(a, whole, task=1, state=consolidated(a, whole))
        got = step(b, one_by_one, task=1, state=consolidated(b, one_by_one))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got, want
        )


def test_shared_kernels_are_named():
    net = {"body": {"kernel": jnp.ones((6, 6))}, "out": {"kernel": jnp.ones((6, 4))}}

    def twice(net, x):
        h = jaxcl.nn.dense(x, net["body"]["kernel"], name="first")
        h = jaxcl.nn.dense(h, net["body"]["kernel"], name="second")
        return jaxcl.nn.dense(h, net["out"]["kernel"], name="out")

    with pytest.raises(ValueError, match="'first' .its kernel is shared by 2 calls"):
        gpm(setup_of(twice, net=net), threshold=0.9)

    def tied(net, x):
        h = jaxcl.nn.dense(x, net["body"]["kernel"], name="first")
        h = h @ net["body"]["kernel"].T
        return jaxcl.nn.dense(h, net["out"]["kernel"], name="out")

    with pytest.raises(ValueError, match="'first' .its kernel is read outside it too"):
        gpm(setup_of(tied, net=net), threshold=0.9)

    def made(net, x):
        h = jaxcl.nn.dense(x, 2 * net["body"]["kernel"], name="first")
        return jaxcl.nn.dense(h, net["out"]["kernel"], name="out")

    with pytest.raises(ValueError, match="'first' .its kernel is made of parameters"):
        gpm(setup_of(made, net=net), threshold=0.9)


@pytest.mark.parametrize(
    "between, followed",
    [
        (jax.nn.relu, True),
        (jax.nn.gelu, True),
        (jnp.tanh, True),
        (lambda h: jax.nn.leaky_relu(h).reshape(len(h), 5, 1).squeeze(-1), True),
        (lambda h: 2 * h * jnp.where(h > 1, 0, 3), True),
        (jax.nn.sigmoid, False),  # a closed unit would not give 0
        (lambda h: h + 1, False),
        (lambda h: h @ jnp.ones((5, 5)), False),
        (lambda h: jax.nn.softmax(h), False),
        (lambda h: h[:, ::-1], False),
        (lambda h: 2 * h * (jnp.arange(5) > 2), True),
        (lambda h: jnp.cumsum(h, 1), False),
        (lambda h: jnp.sort(h, 1), False),
        (lambda h: (h[:5].T @ h[:5])[jnp.arange(12) % 5], False),
    ],
)
def test_what_can_be_followed(between, followed):
    def forward(net, x):
        h = between(jaxcl.nn.dense(x, net["body"]["kernel"], name="body"))
        return jaxcl.nn.dense(h, net["out"]["kernel"], name="out")

    setup = setup_of(forward, net={k: {"kernel": v["kernel"]} for k, v in NET.items()})
    assert setup.layers[1].feeds_on == (("body",) if followed else None)
    if not followed:
        with pytest.raises(
            ValueError, match="has to know which layers feed layer 'out'"
        ):
            hat(setup)


def test_declared_wiring_is_what_is_followed():
    for model in (models.MLP((5, 4), 3), models.AlexNet(4, width=0.05)):
        shape = (2, 32, 32, 3)
        example = jax.ShapeDtypeStruct(shape, jnp.float32)
        declared = jaxcl.nn.inspection.describe(model, example)
        free = type(f"Free{type(model).__name__}", (type(model),), {"wiring": None})
        fields = {k: getattr(model, k) for k in model.__dataclass_fields__}
        followed = jaxcl.nn.inspection.describe(free(**fields), example)
        assert followed == declared


def test_agem_takes_a_bfloat16_network():
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), NET)
    setup = setup_of(by_hand)
    method = agem(setup, per_class=2, batch_size=4)
    state = consolidated(method, setup, narrow)
    update = step(method, setup, narrow, 1, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(update)} == {jnp.dtype("bfloat16")}


def test_outside_a_capture_layers_are_plain_products():
    x, k, b = X, NET["body"]["kernel"], NET["body"]["bias"] + 1
    np.testing.assert_array_equal(jaxcl.nn.dense(x, k, b, name="a"), x @ k + b)
    turned = jaxcl.nn.dense(x, k.T, b, name="a", axis=0)
    np.testing.assert_allclose(turned, x @ k + b, atol=1e-6)
    image = jax.random.normal(KEY, (2, 3, 7, 6))  # NCHW
    kernel = jax.random.normal(KEY, (4, 3, 3, 2))  # OIHW
    for padding in ("SAME", "VALID", ((1, 2), (0, 1))):
        options = dict(name="a", strides=(2, 1), padding=padding)
        want = jax.lax.conv_general_dilated(image, kernel, (2, 1), padding)
        got = jaxcl.nn.conv(image, kernel, jnp.ones(4), axis=0, **options)
        np.testing.assert_allclose(got, want + 1, atol=1e-5)
        nhwc, hwio = image.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0)
        last = jaxcl.nn.conv(nhwc, hwio, jnp.ones(4), **options)
        np.testing.assert_allclose(last.transpose(0, 3, 1, 2), got, atol=1e-5)
    with pytest.raises(ValueError, match="axis must be -1 or 0, got 1"):
        jaxcl.nn.dense(x, k, name="a", axis=1)
    assert Tag("a", "dense").axis == -1
