"""HAT: one step compared with float64 NumPy, and no change to any past task."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import alone as trainers

import jaxcl
from jaxcl.heads import cross_entropy, hold_still, outputs_of, scenario_mask
from jaxcl.nn import capture, inspection, layers, models
from jaxcl.ops import pooling
from jaxcl.ops.sampling import shuffled
from jaxcl.strategies import hat
from jaxcl.training.plan import Plan
from jaxcl.training.problem import validate
from jaxcl.training.trainer import make_trainer
from jaxcl.types import Context, Params, Setup

TASKS, OUTPUTS, S_MAX, LAMBDA, RATE = 3, 6, 400.0, 0.75, 0.05
RNG = np.random.default_rng


class ConvDense(nn.Module):
    """conv 3 × 3 → max pool → ReLU → dense → ReLU → head."""

    wiring = {"conv": (), "dense": ("conv",), "head": ("dense",)}

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.relu(pooling.max_pool(layers.Conv(3, (3, 3), name="conv")(x)))
        x = nn.relu(layers.Dense(5, name="dense")(x.reshape(len(x), -1)))
        return layers.Dense(OUTPUTS, name="head")(x)


class Half(nn.Module):
    """A network that computes in bfloat16."""

    wiring = {"hidden": (), "head": ("hidden",)}

    @nn.compact
    def __call__(self, x, task, train):
        x = nn.relu(nn.Dense(8, dtype=jnp.bfloat16, name="hidden")(x))
        return nn.Dense(OUTPUTS, name="head")(x)


def setup_of(model, shape, scenario="task") -> Setup:
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    outputs = OUTPUTS // (TASKS if scenario != "domain" else 1)
    mask, by = scenario_mask(scenario, TASKS, [outputs] * TASKS)
    return Setup(
        apply_fn=capture.apply_fn(model),
        task_loss=cross_entropy(mask, by),
        layers=inspection.describe(model, example),
        heads=(("head",),),
        logit_mask=mask,
        mask_by=by,
        num_tasks=TASKS,
        example=example,
        mixes_examples=False,
        norms=inspection.describe_norms(model, example),
    )


def start(model, setup, method):
    init = jax.jit(capture.init_fn(model, setup.example))
    net, model_state = init(jax.random.key(1))
    params = jaxcl.init_params(method, jax.random.key(2), net)
    return params, model_state, method.init(params)


def ended(method, params, state, task):
    """The strategy's state after a task; HAT reads neither data nor key."""
    _, state = method.after_task(
        params, state, data=None, model_state={}, task=jnp.int32(task), key=None
    )
    return state


def context(
    setup, task, progress=1.0, seed=0, model_state=None, fraction=1.0
) -> Context:
    rng = RNG([seed, task])
    x = jnp.asarray(rng.normal(size=setup.example.shape), jnp.float32)
    y = jnp.asarray(rng.integers(0, 2, len(x)) + 2 * task)
    return jaxcl.context(
        x,
        y,
        task=task,
        epoch_progress=progress,
        epoch_fraction=fraction,
        model_state=model_state or {},
    )


# One step in float64, in the official order: gates after pooling and ReLU, mask on
# gradients, compensation, clip by the global norm, SGD, clamp of embeddings.


def sigma(x):
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-abs(x)))


def gate_derivative(x, derivative):
    if derivative == "exact":
        return sigma(x) * sigma(-x)
    a = np.float32(1) / (np.float32(1) + np.exp(-np.maximum(x, -80).astype(np.float32)))
    return a * (1 - a.astype(np.float64))


def regulariser(gates, used):
    room = sum((1 - u).sum() for u in used.values())
    return LAMBDA * sum((gates[k] * (1 - u)).sum() for k, u in used.items()) / room


def numpy_step(
    net, embeddings, used, x, y, task, progress, derivative="float32", clip=1e4
):
    """The parameters and embeddings after one step of SGD; both as float64."""
    conv = "conv" in net
    first, second = ("conv", "dense") if conv else ("hidden_0", "hidden_1")
    s = 1 / S_MAX + (S_MAX - 1 / S_MAX) * progress
    a = {k: sigma(s * e[task]) for k, e in embeddings.items()}
    k1, b1 = net[first]["kernel"], net[first]["bias"]
    k2, b2 = net[second]["kernel"], net[second]["bias"]
    k3, b3 = net["head"]["kernel"], net["head"]["bias"]
    n = len(x)

    if conv:
        side = x.shape[1] - 2
        windows = np.stack(
            [
                x[:, i : i + 3, j : j + 3].reshape(n, -1)
                for i in range(side)
                for j in range(side)
            ],
            1,
        )  # [B, positions, 3 · 3 · C]
        z1 = (windows @ k1.reshape(-1, 3) + b1).reshape(n, side, side, 3)
        half = side // 2
        blocks = z1.reshape(n, half, 2, half, 2, 3)
        pooled = blocks.max((2, 4))
        won = blocks == pooled[:, :, None, :, None]
    else:
        windows = x[:, None]
        z1 = x @ k1 + b1
        pooled = z1
    r1 = np.maximum(pooled, 0)
    h1 = (a[first] * r1).reshape(n, -1)
    z2 = h1 @ k2 + b2
    r2 = np.maximum(z2, 0)
    h2 = a[second] * r2
    own = slice(2 * task, 2 * task + 2)
    logits = (h2 @ k3 + b3)[:, own]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    d3 = np.zeros((n, OUTPUTS))
    d3[:, own] = (p - np.eye(2)[y - 2 * task]) / n

    dh2 = d3 @ k3.T
    d2 = dh2 * a[second] * (z2 > 0)
    dh1 = (d2 @ k2.T).reshape(r1.shape)
    d1 = dh1 * a[first] * (pooled > 0)
    da = {
        first: (dh1 * r1).sum(tuple(range(r1.ndim - 1))),
        second: (dh2 * r2).sum(0),
    }
    if conv:
        d1 = (won * d1[:, :, None, :, None]).reshape(n, -1, 3)
    else:
        d1 = d1[:, None]
    g1 = np.einsum("bpi,bpo->io", windows, d1).reshape(k1.shape)

    def keep(before, behind):
        return 1 - np.minimum(before[:, None], behind)

    u1, u2 = used[first], used[second]
    across = keep(np.tile(u1, len(k2) // len(u1)), u2)  # [H, W, C]: channels innermost
    grads = {
        first: {"kernel": g1 * (1 - u1), "bias": d1.sum((0, 1)) * (1 - u1)},
        second: {"kernel": (h1.T @ d2) * across, "bias": d2.sum(0) * (1 - u2)},
        "head": {"kernel": h2.T @ d3, "bias": d3.sum(0)},
    }
    room = sum((1 - u).sum() for u in used.values())
    rows = {}
    for name, e in embeddings.items():
        row = e[task]
        da_total = da[name] + LAMBDA * (1 - used[name]) / room
        g = da_total * s * gate_derivative(s * row, derivative)
        g *= S_MAX / s * (np.cosh(np.clip(s * row, -50, 50)) + 1) / (np.cosh(row) + 1)
        rows[name] = g
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves((grads, rows))))
    step = RATE * min(1, clip / norm)
    new = jax.tree.map(lambda p, g: p - step * g, net, grads)
    moved = {name: e.copy() for name, e in embeddings.items()}
    for name, g in rows.items():
        moved[name][task] = np.clip(moved[name][task] - step * g, -6, 6)
    return new, moved


MODELS = {
    "mlp": (models.MLP((7, 5), OUTPUTS), (9, 4)),
    "conv": (ConvDense(), (6, 6, 6, 2)),
}


@cache
def library_step(name, clip=1e4, **settings):
    """A model's setup, and what a step of clipped SGD adds to its parameters."""
    setup = setup_of(*MODELS[name])
    method = hat(setup, s_max=S_MAX, strength=LAMBDA, **settings)
    loss = jaxcl.transform_loss(method, setup)
    chain = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(RATE))
    tx = jaxcl.transform_optimizer(method, chain, setup)

    @jax.jit
    def update(params, state, ctx):
        grads, out = jax.grad(loss, has_aux=True)(params, state, ctx)
        opt_state = tx.init(params)._replace(strategy=state)
        return tx.update(grads, opt_state, params, ctx=ctx, out=out)[0]

    return setup, start(MODELS[name][0], setup, method), update


# Embeddings in every range of the gate at s = 400: in the middle; where a(1 − a) has
# only two digits left and differs from σ(x)σ(−x) by a sixth; where it is 0; at the
# clamp.
SPREAD = np.array([0.005, 0.0375, 0.05, 1.0, 5.999])


def compare_one_step(
    name, task, ctx, setup, start, update, levels=(0, 0.3, 0.9, 1), **rule
):
    params, _, state = start
    rng = RNG(task)
    spread = SPREAD
    aux = {
        k: jnp.asarray(
            rng.choice(spread, e.shape) * rng.choice([-1.0, 1.0], e.shape), jnp.float32
        )
        for k, e in params.aux.items()
    }
    params = Params(params.net, aux)
    used = {
        k: jnp.asarray(rng.choice(levels, u.shape) * (task > 0), jnp.float32)
        for k, u in state.used.items()
    }
    state = state._replace(used=used)

    updates = update(params, state, ctx)

    wide = jax.tree.map(lambda v: np.asarray(v, np.float64), (params, used))
    net, embeddings = numpy_step(
        wide[0].net,
        wide[0].aux,
        wide[1],
        np.asarray(ctx.batch.x, np.float64),
        np.asarray(ctx.batch.y),
        task,
        **rule,
    )
    want = jax.tree.map(lambda n, o: n - o, (net, embeddings), tuple(wide[0]))
    assert any(np.abs(u).max() > 1e-3 for u in jax.tree.leaves(want))
    for got, exact in zip(
        jax.tree.leaves(tuple(updates)), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-7)
    return want


@pytest.mark.parametrize("derivative", ["float32", "exact"])
@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("task", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_one_step_equals_the_rule_in_float64(name, task, progress, derivative):
    setup, start, update = library_step(name, derivative=derivative)
    ctx = context(setup, task, progress, seed=task, fraction=0.5)
    rule = {"progress": progress, "derivative": derivative}
    compare_one_step(name, task, ctx, setup, start, update, **rule)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.99])
def test_the_slope_can_follow_the_examples_seen(fraction):
    setup, start, update = library_step("conv", epoch_progress="examples")
    ctx = context(setup, 1, 0.5, fraction=fraction)
    compare_one_step("conv", 1, ctx, setup, start, update, progress=fraction)


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_the_clip_comes_behind_mask_and_compensation(name, task):
    clip = 0.1
    setup, start, update = library_step(name, clip=clip)
    ctx = context(setup, task, seed=task)
    rule = {"progress": 1.0, "clip": clip, "levels": (0, 1)}
    want = compare_one_step(name, task, ctx, setup, start, update, **rule)
    norm = np.sqrt(sum((u**2).sum() for u in jax.tree.leaves(want)))
    assert norm == pytest.approx(RATE * clip, rel=1e-3)  # it does clip


OPTIMIZERS = {
    "sgd": optax.sgd(0.01),
    "momentum": optax.sgd(0.01, momentum=0.9),
    "adam": optax.adam(0.01),
    "decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_a_past_task_uses_moves_by_a_bit(name):
    model, shape = MODELS["conv"]
    setup = setup_of(model, shape)
    method = hat(setup, strength=0.1)
    params, _, _ = start(model, setup, method)
    # Each task opens one unit more than the last: some stay free to the end.
    two = jnp.float32(2)
    aux = {
        k: jnp.where(jnp.arange(e.shape[1]) <= jnp.arange(TASKS)[:, None], two, -two)
        for k, e in params.aux.items()
    }
    params = Params(params.net, aux)
    loss = jaxcl.transform_loss(method, setup)
    tx, traces = jaxcl.transform_optimizer(method, OPTIMIZERS[name], setup), []

    @jax.jit
    def step(params, opt_state, ctx):
        traces.append(1)
        grads, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        u, opt_state = tx.update(grads, opt_state, params, ctx=ctx, out=out)
        return optax.apply_updates(params, u), opt_state

    opt_state, held = tx.init(params), []
    for task in range(TASKS):
        for i in range(12):
            ctx = context(setup, task, i / 11, seed=i)
            params, opt_state = step(params, opt_state, ctx)
        for past, net, aux, protected in held:
            columns = slice(2 * past, 2 * past + 2)
            for leaf in ("kernel", "bias"):
                now = params.net["head"][leaf][..., columns]
                assert (now == net["head"][leaf][..., columns]).all()
                for layer in ("conv", "dense"):
                    kept = np.broadcast_to(
                        protected[layer, leaf], net[layer][leaf].shape
                    )
                    moved = params.net[layer][leaf] != net[layer][leaf]
                    assert kept.any() and moved.any() and not (moved & kept).any()
            for layer, e in aux.items():
                assert (params.aux[layer][: past + 1] == e[: past + 1]).all()
                assert (params.aux[layer][task] != e[task]).any()
        data = jaxcl.array_data(ctx.batch.x, ctx.batch.y, task)
        params, opt_state = jaxcl.after_task(method, params, opt_state, data, task=task)
        u = {k: np.asarray(v) for k, v in opt_state.strategy.used.items()}
        across = np.minimum(np.tile(u["conv"], 4)[:, None], u["dense"])
        protected = {
            ("conv", "kernel"): u["conv"] == 1,
            ("conv", "bias"): u["conv"] == 1,
            ("dense", "kernel"): across == 1,
            ("dense", "bias"): u["dense"] == 1,
        }
        held.append((task, params.net, params.aux, protected))
    assert len(traces) == 1


NETS = {
    "mlp": lambda norm: (models.MLP((32, 32), OUTPUTS, norm=norm, num_tasks=3), (5, 4)),
    "alexnet": lambda norm: (
        models.AlexNet(OUTPUTS, width=1 / 16, norm=norm, num_tasks=3),
        (3, 32, 32, 3),
    ),
    "resnet18": lambda norm: (
        models.ResNet18(OUTPUTS, channels=4, norm=norm, num_tasks=3),
        (3, 8, 8, 3),
    ),
}


def forward_of(method, setup, train=False):
    @jax.jit
    def run(state, params, model_state, ctx):
        f = method.forward(setup.apply_fn, state, params.aux, ctx=ctx)
        batch = ctx.batch
        return f(params.net, model_state, batch.x, batch.task, ctx.key, train)

    return run


def disturbed(model, shape, norm_refused=True):
    """Task 1's logits before and after everything that may change has changed."""
    setup = setup_of(model, shape)
    method = hat(setup, refuse_shared_norm=norm_refused)
    rng = RNG(5)

    def noise(p):
        return rng.normal(size=p.shape).astype(np.float32)

    # Gates of exactly 0 and 1, and norms with a shift: a leak of a closed unit shows.
    shapes, stats = jax.eval_shape(
        capture.init_fn(model, setup.example), jax.random.key(0)
    )
    net = jax.tree.map(lambda p: 0.3 * noise(p), shapes)
    model_state = jax.tree.map(lambda p: np.ones(p.shape, np.float32), stats)
    params = jaxcl.init_params(method, jax.random.key(2), net)
    aux = jax.tree.map(lambda e: 6 * np.sign(noise(e)), params.aux)
    params = Params(net, aux)
    first, later = context(setup, 0), context(setup, 1)
    state = ended(method, params, method.init(params), 0)
    evaluate = forward_of(method, setup)
    before = evaluate(state, params, model_state, first).logits

    @jax.jit
    def move(state, params, u, ctx):
        in_play = outputs_of(setup, ctx.batch, ctx.task)
        u = u._replace(net=hold_still(setup, u.net, in_play))
        u, _ = method.updates(u, state, params, grads=u, ctx=ctx, out=None)
        return optax.apply_updates(params, u)

    moved = move(state, params, jax.tree.map(noise, params), later)
    if model_state:
        train = forward_of(method, setup, train=True)
        model_state = train(state, moved, model_state, later).model_state
    after = evaluate(state, moved, model_state, first).logits
    changed = sum(
        (a != b).sum()
        for a, b in zip(jax.tree.leaves(moved.net), jax.tree.leaves(net), strict=True)
    )
    assert changed > 0.3 * sum(p.size for p in jax.tree.leaves(net))
    columns = np.asarray(setup.logit_mask[0])
    return before[:, columns], after[:, columns]


@pytest.mark.parametrize(
    "name, norm",
    [
        *(("mlp", norm) for norm in ("none", "group", "layer", "batch_per_task")),
        ("alexnet", "none"),
        ("alexnet", "batch_per_task"),
        ("alexnet", "batch_current"),
        ("resnet18", "layer"),
    ],
)
def test_a_past_task_computes_the_same_whatever_may_move(name, norm):
    before, after = disturbed(*NETS[name](norm))
    assert np.ptp(np.asarray(before), axis=0).min() > 1e-3  # it does compute something
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_batchnorm_with_shared_statistics_forgets():
    before, after = disturbed(*NETS["mlp"]("batch"), norm_refused=False)
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("name", NETS)
def test_batchnorm_with_shared_statistics_is_refused_by_name(name):
    with pytest.raises(
        ValueError, match="hat refuses '.*Norm_0', a BatchNorm .*'none'"
    ):
        hat(setup_of(*NETS[name]("batch")))


def test_evaluation_takes_each_examples_own_gates():
    model, shape = MODELS["mlp"]
    setup = setup_of(model, shape)
    method = hat(setup)
    params, model_state, state = start(model, setup, method)
    ctx = context(setup, 0)
    task = jnp.arange(len(ctx.batch.x)) % TASKS
    mixed = ctx._replace(batch=ctx.batch._replace(task=task))
    evaluate = forward_of(method, setup)
    got = evaluate(state, params, model_state, mixed).logits
    for t in range(TASKS):
        own = ctx._replace(batch=ctx.batch._replace(task=jnp.full_like(task, t)))
        alone = evaluate(state, params, model_state, own).logits
        np.testing.assert_allclose(got[task == t], alone[task == t], rtol=1e-5)


def test_embeddings_and_gates_stay_float32_in_a_bfloat16_network():
    model = Half()
    setup = setup_of(model, (6, 4))
    method = hat(setup)
    params, _, state = start(model, setup, method)
    seen = {}

    def spy(apply_fn):
        def apply(*args):
            out = apply_fn(*args)
            seen.update({k: v.dtype for k, v in out.taps.items()})
            return out

        return apply

    ctx = context(setup, 1)
    method = method._replace(
        forward=lambda *args, ctx, inner=method.forward: spy(inner(*args, ctx=ctx))
    )
    loss, _ = trainers(method, optax.sgd(0.1), setup)
    g, out = jax.grad(loss, has_aux=True)(params, state, ctx)
    g, _ = method.grads(g, state, params, ctx=ctx, out=out)
    assert seen["head"] == jnp.bfloat16
    assert params.aux["hidden"].dtype == g.aux["hidden"].dtype == jnp.float32
    assert np.isfinite(g.aux["hidden"]).all()


def test_capacity_is_accounted_for():
    setup = setup_of(*MODELS["mlp"])
    method = hat(setup)
    params, _, state = start(MODELS["mlp"][0], setup, method)
    on = np.float32([6, 6, 6, 6, -6, -6, -6]), np.float32([-6, 6, -6, 6, 6, -6, -6])
    rows = jnp.asarray(np.stack([*on, on[0]]))
    clamped = jnp.asarray([[-1.0] * 5, [-1, -1, -1, -6, 5.99], [-1] * 5])
    aux = {**params.aux, "hidden_0": rows, "hidden_1": clamped}
    params = Params(params.net, aux)
    reports = []
    for task in (0, 1):
        state = ended(method, params, state, task)
        report = method.report(state)
        assert list(report) == ["taken", "shared", "at_clamp"]
        assert all(list(part) == ["hidden_0", "hidden_1"] for part in report.values())
        reports.append(jax.tree.map(float, report))
    first, second = reports
    assert first["taken"]["hidden_0"] == pytest.approx(4 / 7)
    assert second["taken"]["hidden_0"] == pytest.approx(5 / 7)
    assert first["shared"]["hidden_0"] == 0
    assert second["shared"]["hidden_0"] == pytest.approx(2 / 7)
    assert first["taken"]["hidden_1"] == 0
    assert second["taken"]["hidden_1"] == pytest.approx(1 / 5)
    assert first["at_clamp"] == {"hidden_0": 1, "hidden_1": 0}
    assert second["at_clamp"] == pytest.approx({"hidden_0": 1, "hidden_1": 1 / 5})


def test_what_hat_cannot_do_is_refused_with_the_reason():
    setup = setup_of(*MODELS["mlp"])
    for settings, message in [
        ({"s_max": 0}, "s_max must be greater than 0, got 0"),
        ({"s_max": -1.0}, "s_max must be greater than 0, got -1"),
        ({"strength": -0.1}, "strength must be at least 0, got -0.1"),
        ({"bound": 0}, "bound must be greater than 0, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            hat(setup, **settings)
    for scenario in ("domain", "class"):
        with pytest.raises(ValueError, match="use scenario 'task'"):
            hat(setup_of(*MODELS["mlp"], scenario))
    with pytest.raises(ValueError, match="hat needs setup.layers"):
        hat(setup._replace(layers=()))
    blind = tuple(x._replace(feeds_on=None) for x in setup.layers)
    with pytest.raises(ValueError, match="which layers feed layer 'hidden_0'"):
        hat(setup._replace(layers=blind))
    grouped = tuple(x._replace(refusal="it is odd") for x in setup.layers[:1])
    with pytest.raises(
        ValueError, match="hat cannot treat layer 'hidden_0' .it is odd"
    ):
        hat(setup._replace(layers=grouped + setup.layers[1:]))
    odd = setup.layers[1]._replace(d_in=9)
    with pytest.raises(ValueError, match="9 inputs, which is no multiple of the 7"):
        hat(setup._replace(layers=(setup.layers[0], odd, setup.layers[2])))


def test_a_task_that_was_not_declared_is_refused():
    model, shape = MODELS["mlp"]
    setup = setup_of(model, shape)
    method = hat(setup)
    params, _, state = start(model, setup, method)
    loss = jaxcl.transform_loss(method, setup)
    with pytest.raises(ValueError, match="task must lie in .0, 3., got 3"):
        loss(params, state, context(setup, 3))


def test_a_normalisation_between_other_things_and_unknown_parameters_are_refused():
    class Late(nn.Module):
        wiring = {"hidden": (), "head": ("hidden",)}

        @nn.compact
        def __call__(self, x, task, train):
            x = nn.LayerNorm(name="late")(nn.relu(layers.Dense(4, name="hidden")(x)))
            return layers.Dense(OUTPUTS, name="head")(x)

    class Scaled(nn.Module):
        wiring = {"hidden": (), "head": ("hidden",)}

        @nn.compact
        def __call__(self, x, task, train):
            x = layers.Dense(4, name="hidden")(x)
            x = x * self.param("gain", nn.initializers.ones, (4,))
            return layers.Dense(OUTPUTS, name="head")(x)

    with pytest.raises(ValueError, match="'late': it does not read a layer's output"):
        hat(setup_of(Late(), (3, 4)))
    setup = setup_of(Scaled(), (3, 4))
    with pytest.raises(ValueError, match="no rule to protect parameter 'gain'"):
        start(Scaled(), setup, hat(setup))


def test_one_batchnorm_a_task_keeps_rows_apart():
    norm = layers.TaskBatchNorm(3)
    x = jax.random.normal(jax.random.key(0), [40, 2, 2, 5]) * 3 + 1
    task = jnp.where(jnp.arange(40) < 15, 0, 2)
    variables = norm.init(jax.random.key(1), x, task, False)
    y, new = norm.apply(variables, x, task, True, mutable=["batch_stats"])
    for t in (0, 2):
        own = np.asarray(y)[np.asarray(task) == t]
        np.testing.assert_allclose(own.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(own.var((0, 1, 2)), 1, rtol=1e-3)
    stats = new["batch_stats"]
    share = 1 - 0.9 ** (25 / 40)  # of the batch, 25 examples are of task 2
    want = share * np.asarray(x)[15:].mean((0, 1, 2))
    np.testing.assert_allclose(stats["mean"][2], want, rtol=1e-4)
    assert (stats["mean"][1] == 0).all() and (stats["var"][1] == 1).all()
    evaluated = norm.apply({**variables, **new}, x, task, False)
    row = (np.asarray(x)[-1] - stats["mean"][2]) / np.sqrt(stats["var"][2] + 1e-5)
    np.testing.assert_allclose(evaluated[-1], row, rtol=1e-4, atol=1e-5)


def test_a_model_declared_for_fewer_tasks_than_the_stream_has_is_refused(problem):
    for declared, message in [
        (2, "num_tasks=2 tasks, the stream has 3"),
        (None, "'batch_per_task' needs num_tasks"),
    ]:
        with pytest.raises(ValueError, match=message):
            validate(
                problem(
                    "hat",
                    model=lambda k, n=declared: models.MLP(
                        (16,), k, norm="batch_per_task", num_tasks=n
                    ),
                )
            )


@pytest.mark.parametrize("norm", ["none", "batch_per_task", "batch_current"])
def test_a_run_forgets_nothing(problem, finish, norm):
    last = finish(
        problem(
            "hat",
            seeds=(0,),
            model=lambda k: models.MLP((48,), k, norm=norm, num_tasks=3),
            plan={"epochs": 6},
        )
    )
    learned = np.diagonal(last.accuracy[0])
    assert learned.min() > 0.8
    np.testing.assert_allclose(last.accuracy[0, -1], learned, atol=1e-6)
    assert list(last.report) == ["taken", "shared", "at_clamp"]
    for layers_of in last.report.values():
        assert list(layers_of) == ["hidden_0"]
        assert ((layers_of["hidden_0"] >= 0) & (layers_of["hidden_0"] <= 1)).all()


def reference_epoch(params, used, data, order, size, task):
    """An epoch of the official rule, with the slope by examples seen, in float64."""
    net, embeddings = params
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        x, y = data[0][rows], data[1][rows]
        progress = start / len(order)
        net, embeddings = numpy_step(net, embeddings, used, x, y, task, progress)
    return net, embeddings


def reference_loss(net, embeddings, used, x, y, task):
    """The loss of the official `eval` for an MLP, with and without the regulariser."""
    a = {k: sigma(S_MAX * e[task]) for k, e in embeddings.items()}
    for name in ("hidden_0", "hidden_1"):
        x = np.maximum(x @ net[name]["kernel"] + net[name]["bias"], 0) * a[name]
    logits = (x @ net["head"]["kernel"] + net["head"]["bias"])[:, 2 * task :][:, :2]
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    task_loss = -logits[np.arange(len(y)), y - 2 * task].mean()
    return task_loss + regulariser(a, used), task_loss


def test_a_compiled_epoch_and_its_validation_equal_the_rule_in_float64():
    """25 examples in batches of 9: the last has 7, and the slope follows examples."""
    model, _ = MODELS["mlp"]
    setup, task, size = setup_of(*MODELS["mlp"]), 1, 9
    method = hat(setup, strength=LAMBDA, epoch_progress="examples")
    optimizer = optax.chain(optax.clip_by_global_norm(1e4), optax.sgd(RATE))
    plan = Plan(epochs=1, batch_size=size, select="best", select_metric="loss")
    init = capture.init_fn(model, setup.example)
    trainer = make_trainer(setup, method, optimizer, plan, init, masked=False)
    rng = RNG(0)
    x, y = rng.normal(size=(35, 4)), rng.integers(0, 2, 35) + 2 * task
    x = x.astype(np.float32).astype(np.float64)
    train = jaxcl.array_data(jnp.float32(x[:25]), y[:25], task)
    valid = jaxcl.array_data(jnp.float32(x[25:]), y[25:], task)

    seed = trainer.begin(trainer.init(jax.random.key(0)), jnp.array(True), jnp.ones(()))
    free = seed.strategy_state.used
    used = {k: jnp.float32(rng.choice([0, 0.3, 1], u.shape)) for k, u in free.items()}
    state = seed.strategy_state._replace(used=used)
    seed = seed._replace(opt_state=seed.opt_state._replace(strategy=state))
    key = jax.random.key(5)

    @jax.jit
    def epoch(seed):
        zero = jnp.int32(0)
        return trainer.epoch(seed, (), train, valid, jnp.int32(task), zero, key, zero)

    after, metrics = epoch(seed)
    order = shuffled(jax.random.split(jax.random.fold_in(key, 0))[0], train.size, 25)
    start, used = jax.tree.map(lambda v: np.asarray(v, np.float64), (seed.params, used))
    want = reference_epoch(start, used, (x, y), np.asarray(order), size, task)
    moved = jax.tree.map(lambda n, o: np.abs(n - o).max(), want, tuple(start))
    assert all(jax.tree.leaves(moved)), "every parameter is trained"
    for got, exact, step in zip(
        *map(jax.tree.leaves, (tuple(after.params), want, moved)), strict=True
    ):
        np.testing.assert_allclose(got, exact, atol=1e-4 * step)

    loss, task_loss = reference_loss(*want, used, x[25:], y[25:], task)
    np.testing.assert_allclose(metrics.valid_loss, loss, rtol=1e-4)
    np.testing.assert_allclose(after.progress.best_score, -loss, rtol=1e-4)
    # Evaluation without validation reports only the task's loss.
    _, plain = trainer.evaluate(after, valid, jnp.int32(task))
    np.testing.assert_allclose(plain, task_loss, rtol=1e-4)
    assert loss > 1.1 * task_loss
