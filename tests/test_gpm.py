"""GPM compared with a float64 transcription of the paper, and its guarantees."""

import warnings
from functools import lru_cache, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import alone
from test_linalg import paper_span

import jaxcl
from jaxcl.data import sources
from jaxcl.heads import cross_entropy, scenario_mask
from jaxcl.nn import capture, inspection, layers, models
from jaxcl.strategies import finetune, gpm
from jaxcl.testing import small_problem
from jaxcl.training import protocol
from jaxcl.training.problem import setup_of as setup_of_problem
from jaxcl.training.problem import validate
from jaxcl.types import Setup


class Net(nn.Module):
    """Convolution with stride and SAME, one VALID, normalisation, dense, head."""

    num_outputs: int = 10
    use_bias: bool = False
    norm: str = "none"

    mixes_examples = False

    @nn.compact
    def __call__(self, x, task, train):
        x = layers.Conv(6, (3, 3), (2, 2), "SAME", self.use_bias, name="conv_0")(x)
        x = nn.relu(layers.Norm(self.norm)(x, task, train))
        x = nn.relu(layers.Conv(8, (2, 2), use_bias=self.use_bias, name="conv_1")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(layers.Dense(20, self.use_bias, name="dense_0")(x))
        return layers.Dense(self.num_outputs, self.use_bias, name="head")(x)


MLP = partial(models.MLP, (32, 24), 10, use_bias=False)


def make_setup(model, *, batch=10, scenario="domain", num_tasks=3) -> Setup:
    example = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.float32)
    share = 10 if scenario == "domain" else model.num_outputs // num_tasks
    mask, mask_by = scenario_mask(scenario, num_tasks, [share] * num_tasks)
    return Setup(
        apply_fn=capture.apply_fn(model),
        task_loss=cross_entropy(mask, mask_by),
        layers=inspection.describe(model, example),
        heads=(("head",),),
        logit_mask=mask,
        mask_by=mask_by,
        num_tasks=num_tasks,
        example=example,
        mixes_examples=False,
    )


@pytest.fixture(scope="module")
def digits():
    """Three tasks: the digits, their pixels in three orders; [3, N, 8, 8, 1]."""
    source = sources.load("digits")
    x = source.train_x[:400].reshape(400, 64) / 16.0 - 0.3
    rng = np.random.default_rng(0)
    orders = [np.arange(64), rng.permutation(64), rng.permutation(64)]
    images = np.stack([x[:, o].reshape(400, 8, 8, 1) for o in orders])
    return images.astype(np.float32), source.train_y[:400].astype(np.int32)


@lru_cache
def start(model):
    example = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    return jax.jit(capture.init_fn(model, example))(jax.random.key(0))


def prepared(method, state, data):
    """What GPM computes before a task, from its state and the data alone."""
    return method.before_task((), state, data=data, model_state={}, task=1)


def loop(method, setup, ms, optimizer, steps=150):
    """Some steps on one task in a loop that is not the project's, traced once."""
    loss, tx = alone(method, optimizer, setup)

    @jax.jit
    def run(params, state, x, y, task):
        data = jaxcl.array_data(x, y, task)
        cache = prepared(method, state, data)

        def step(carry, i):
            params, opt_state = carry
            key = jax.random.fold_in(jax.random.key(task), i)
            batch = data.take(jax.random.randint(key, (10,), 0, len(x)))
            ctx = jaxcl.context_of(
                batch, task=task, key=key, step=i, cache=cache, model_state=ms
            )
            g, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
            u, opt_state = tx.update(g, opt_state, params, ctx=ctx, out=out)
            return (optax.apply_updates(params, u), opt_state), None

        carry = params, tx.init(params)._replace(strategy=state)
        (params, opt_state), _ = jax.lax.scan(step, carry, jnp.arange(steps))
        return params, opt_state.strategy

    return run


def consolidation(method, ms):
    @jax.jit
    def run(params, state, x, y, task):
        return method.after_task(
            params,
            state,
            data=jaxcl.array_data(x, y),
            model_state=ms,
            task=task,
            key=jax.random.key(task),
        )

    return run


def windows(x, kernel, strides, padding):
    """Every window of [B, H, W, C] as a row, by loops over pixels."""
    (kh, kw), (sh, sw) = kernel, strides
    if padding == "SAME":  # 8 × 8, window 3, stride 2: one row of zeros at the end
        x = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return np.stack(
        [
            x[:, i : i + kh, j : j + kw].reshape(len(x), -1)
            for i in range(0, x.shape[1] - kh + 1, sh)
            for j in range(0, x.shape[2] - kw + 1, sw)
        ],
        axis=1,
    )


def activations(net, x, conv):
    """Each layer's representation [d, n] in float64, without the project's code."""
    net = jax.tree.map(lambda a: np.asarray(a, np.float64), net)
    x, out = x.astype(np.float64), {}
    if conv:
        for name, shape in (
            ("conv_0", ((3, 3), (2, 2), "SAME")),
            ("conv_1", ((2, 2), (1, 1), "VALID")),
        ):
            rows = windows(x, *shape)
            out[name] = rows.reshape(-1, rows.shape[-1]).T
            k = net[name]["kernel"]
            side = int(rows.shape[1] ** 0.5)
            x = np.maximum(rows @ k.reshape(-1, k.shape[-1]), 0)
            x = x.reshape(len(x), side, side, -1)
    x = x.reshape(len(x), -1)
    for name in ("dense_0", "head") if conv else ("hidden_0", "hidden_1", "head"):
        out[name] = x.T
        x = np.maximum(x @ net[name]["kernel"], 0)
    return out


@pytest.mark.parametrize("model", [MLP(), Net()], ids=["dense", "conv"])
def test_memory_follows_the_paper_over_three_tasks(digits, model):
    x, y = digits
    setup = make_setup(model)
    names = [layer.name for layer in setup.layers]
    threshold = [0.9, 0.95, 0.97, 0.98][: len(names)]
    method = gpm(setup, threshold=threshold, threshold_step=0.005, samples=400)
    net, ms = start(model)
    params, paper = jaxcl.init_params(method, jax.random.key(1), net), {}
    state = method.init(params)
    train = loop(method, setup, ms, optax.sgd(0.05))
    consolidate = consolidation(method, ms)
    for task in range(3):
        params, state = train(params, state, x[task], y, task)
        params, state = consolidate(params, state, x[task], y, task)
        real = activations(params.net, x[task], "conv_0" in names)
        for name, base in zip(names, threshold, strict=True):
            known = paper.get(name, np.zeros((len(real[name]), 0)))
            level = base + 0.005 * task
            paper[name] = paper_span(known, real[name], level, task == 0)
            u = np.asarray(state.basis[name])
            assert int(state.count[name]) == paper[name].shape[1], (name, task)
            np.testing.assert_allclose(u @ u.T, paper[name] @ paper[name].T, atol=1e-5)
    report = method.report(state)
    assert list(report) == ["taken"]
    shares = {k: float(v) for k, v in report["taken"].items()}
    assert shares == pytest.approx(
        {n: paper[n].shape[1] / len(paper[n]) for n in names}
    )
    assert list(shares) == names and 0.2 < shares[names[0]] <= 1


def memory(setup, method, net, ms, x, y):
    """A state that has a subspace for every layer."""
    params = jaxcl.init_params(method, jax.random.key(1), net)
    state = method.init(params)
    return params.aux, consolidation(method, ms)(params, state, x, y, 0)[1]


@pytest.mark.parametrize(
    "model, where, optimizer",
    [
        (MLP(), "grads", optax.sgd(0.05)),
        (MLP(), "grads", optax.sgd(0.01, 0.9)),
        (MLP(), "updates", optax.adam(1e-3)),
        (MLP(), "updates", optax.adamw(1e-3, weight_decay=0.1)),
        (Net(), "grads", optax.sgd(0.01, 0.9)),
        (Net(), "updates", optax.adamw(1e-3, weight_decay=0.1)),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "conv momentum", "conv adamw"],
)
def test_weights_stay_out_of_the_memory(digits, model, where, optimizer):
    x, y = digits
    setup = make_setup(model)
    method = gpm(setup, threshold=0.9, samples=100, where=where)
    net, ms = start(model)
    aux, state = memory(setup, method, net, ms, x[0], y)
    train = loop(method, setup, ms, optimizer, steps=400)
    params, state = train(jaxcl.Params(net, aux), state, x[1], y, 1)
    for layer in setup.layers:
        before = np.asarray(net[layer.name]["kernel"], np.float64)
        moved = np.asarray(params.net[layer.name]["kernel"]) - before
        moved = moved.reshape(layer.d_in, -1)
        u = np.asarray(state.basis[layer.name], np.float64)
        assert 0 < int(state.count[layer.name]) < layer.d_in
        assert np.linalg.norm(moved) > 1e-2 * np.linalg.norm(before)
        leak = np.linalg.norm(u @ (u.T @ moved)) / np.linalg.norm(before)
        assert leak <= 2e-5, layer.name


def test_projecting_gradients_before_adam_leaks(digits):
    """This leak is the reason for the warning."""
    x, y = digits
    model = MLP()
    setup = make_setup(model)
    method = gpm(setup, threshold=0.9, samples=100)
    net, ms = start(model)
    aux, state = memory(setup, method, net, ms, x[0], y)
    adam = optax.adam(1e-3)
    with pytest.warns(UserWarning, match="earlier tasks are not protected"):
        jaxcl.transform_optimizer(method, adam, setup)
    train = loop(method, setup, ms, adam)
    params, _ = train(jaxcl.Params(net, aux), state, x[1], y, 1)
    moved = params.net["hidden_0"]["kernel"] - net["hidden_0"]["kernel"]
    u = state.basis["hidden_0"]
    assert jnp.linalg.norm(u.T @ moved) > 0.05 * jnp.linalg.norm(moved)


def one_step(
    method,
    setup,
    net,
    ms,
    aux,
    state,
    batch_x,
    batch_y,
    *,
    task=1,
    cache=(),
    index=None,
):
    loss, _ = alone(method, optax.sgd(0.1), setup)
    ctx = jaxcl.context(
        batch_x, batch_y, task=task, cache=cache, model_state=ms, task_progress=0.5
    )
    if index is not None:
        ctx = ctx._replace(batch=ctx.batch._replace(index=index))
    params = jaxcl.Params(net, aux)

    @jax.jit
    def run(params, state, ctx):
        g, out = jax.grad(loss, has_aux=True)(params, state, ctx)
        g, state = method.grads(g, state, params, ctx=ctx, out=out)
        return method.updates(g, state, params, grads=g, ctx=ctx, out=out)

    u, state = run(params, state, ctx)
    return u.net, state


@pytest.mark.parametrize(
    "model, batch", [(MLP(), 5), (MLP(), 40), (Net(), 1)], ids=["all", "first", "conv"]
)
def test_both_forms_give_the_same_step(digits, model, batch):
    """The batch size decides which layers project inputs: all, some, the cached one."""
    x, y = digits
    setup = make_setup(model, batch=batch)
    net, ms = start(model)
    cheap = gpm(setup, threshold=0.9, samples=100)
    plain = gpm(setup, threshold=0.9, samples=100, form="gradient")
    aux, state = memory(setup, plain, net, ms, x[0], y)
    index = jnp.arange(batch) * 3 + 1
    data = jaxcl.array_data(x[1], y)
    bx, by = data.take(index)[:2]
    expected, _ = one_step(
        plain,
        setup,
        net,
        ms,
        aux,
        state,
        bx,
        by,
        cache=jax.jit(lambda s: prepared(plain, s, data))(state),
    )
    bare, _ = one_step(finetune(setup), setup, net, ms, aux, (), bx, by)
    cache = jax.jit(lambda s: prepared(cheap, s, data))(state)
    assert set(cache.inputs) == (
        {"hidden_0"} if isinstance(model, models.MLP) else set()
    )
    runs = [
        dict(cache=cache, index=index),
        dict(cache=cache, index=index.at[0].set(-1)),  # a replayed example
        dict(cache=()),  # a loop without `before_task`
    ]
    for options in runs:
        got, _ = one_step(cheap, setup, net, ms, aux, state, bx, by, **options)
        for layer in setup.layers:
            g, e = got[layer.name]["kernel"], expected[layer.name]["kernel"]
            scale = jnp.abs(bare[layer.name]["kernel"]).max()
            np.testing.assert_allclose(g, e, atol=2e-6 * max(1, scale))
            assert jnp.abs(e - bare[layer.name]["kernel"]).max() > 1e-2 * scale


@pytest.mark.parametrize("model", [MLP(), Net(use_bias=True)], ids=["dense", "conv"])
def test_with_nothing_held_a_step_is_plain(digits, model):
    x, y = digits
    setup = make_setup(model)
    net, ms = start(model)
    method = gpm(setup, threshold=0.9)
    params = jaxcl.init_params(method, jax.random.key(0), net)
    aux, state = params.aux, method.init(params)
    bx, by = jnp.asarray(x[0][:10]), jnp.asarray(y[:10])
    cache = prepared(method, state, jaxcl.array_data(x[0], y))
    got, _ = one_step(method, setup, net, ms, aux, state, bx, by, task=0, cache=cache)
    bare, _ = one_step(finetune(setup), setup, net, ms, aux, (), bx, by, task=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, bare)


@pytest.mark.parametrize("where", ["grads", "updates"])
def test_biases_and_norms_train_in_the_first_task_only(digits, where):
    x, y = digits
    model = Net(num_outputs=12, use_bias=True, norm="batch_current")
    setup = make_setup(model, scenario="task")
    net, ms = start(model)
    method = gpm(setup, threshold=0.9, samples=50, where=where)
    aux, state = memory(setup, method, net, ms, x[0], y)
    assert set(state.basis) == {"conv_0", "conv_1", "dense_0"}
    bx, by = jnp.asarray(x[1][:10]), 4 + jnp.asarray(y[:10]) % 4
    for task, frozen in ((0, False), (1, True)):
        labels = by - 4 if task == 0 else by
        u, _ = one_step(method, setup, net, ms, aux, state, bx, labels, task=task)
        still = {
            jax.tree_util.keystr(path): not leaf.any()
            for path, leaf in jax.tree_util.tree_leaves_with_path(u)
        }
        heads = {k: v for k, v in still.items() if "head" in k}
        others = {
            k: v for k, v in still.items() if "head" not in k and "kernel" not in k
        }
        assert not any(heads.values()) and len(heads) == 2
        assert len(others) == 5 and all(v is frozen for v in others.values()), others
        own = slice(4 * task, 4 * task + 4)
        for leaf in jax.tree.leaves(u["head"]):
            assert leaf[..., own].any()
            assert not np.delete(np.asarray(leaf), np.r_[own], axis=-1).any()


def test_weight_decay_does_not_move_heads_out_of_play(digits):
    x, y = digits
    model = Net(num_outputs=12)
    setup = make_setup(model, scenario="task")
    net, ms = start(model)
    method = gpm(setup, threshold=0.9, samples=50, where="updates")
    aux, state = memory(setup, method, net, ms, x[0], y)
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    train = loop(method, setup, ms, optimizer, steps=20)
    params, _ = train(jaxcl.Params(net, aux), state, x[1], 4 + y % 4, 1)
    moved = np.asarray(params.net["head"]["kernel"] - net["head"]["kernel"])
    assert np.abs(moved[:, 4:8]).max() > 1e-3
    assert not moved[:, :4].any() and not moved[:, 8:].any()


def test_fewer_examples_than_samples(digits):
    x, y = digits
    model = MLP()
    setup = make_setup(model)
    net, ms = start(model)
    few = memory(
        setup, gpm(setup, threshold=0.9, samples=300), net, ms, x[0][:7], y[:7]
    )
    real = activations(net, x[0][:7], False)
    for name, r in real.items():
        k = paper_span(np.zeros((len(r), 0)), r, 0.9, True).shape[1]
        assert int(few[1].count[name]) == k


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(threshold=0.0), r"\(0, 1\], got 0.0"),
        (
            dict(threshold=0.97, threshold_step=0.02),
            "0.97 in the first and 1.01 in the",
        ),
        (dict(threshold=[0.9, 0.9]), r"2 entries for 3 projected layers \(hidden_0"),
        (dict(threshold=0.9, samples=0), "samples must be at least 1, got 0"),
        (dict(threshold=0.9, where="after"), "grads, updates, got 'after'"),
        (dict(threshold=0.9, form="input"), "auto, gradient, got 'input'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gpm(make_setup(MLP()), **settings)


class Untreatable(nn.Module):
    @nn.compact
    def __call__(self, x, task, train):
        x = nn.Conv(4, (3, 3), feature_group_count=1, name="fine")(x)
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="grouped")(x)
        twice = nn.Dense(4, name="shared")
        x = twice(twice(x)).reshape(x.shape[0], -1)
        return nn.Dense(10, name="head")(x)


def test_layers_that_cannot_be_projected_are_refused_by_name():
    with pytest.raises(
        ValueError, match="gpm.*'grouped' .*2 groups.*'shared' .*2 calls"
    ):
        gpm(make_setup(Untreatable()), threshold=0.9)
    bare = make_setup(MLP())._replace(layers=())
    with pytest.raises(ValueError, match="gpm needs setup.layers"):
        gpm(bare, threshold=0.9)


def test_an_optimizer_that_undoes_it_is_warned_of_when_built(problem):
    def build(where, optimizer):
        validate(
            problem("gpm", {"threshold": 0.9, "where": where}, optimizer=optimizer)
        )

    with pytest.warns(UserWarning, match='projects gradients.*where="updates"'):
        build("grads", optax.adam(1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("grads", optax.sgd(0.1, 0.9))
        build("updates", optax.adam(1e-3))


def test_a_run_reports_the_space_taken_and_forgets_less(problem):
    options = dict(
        kind="permuted",
        scenario="domain",
        seed_mode="vmap",
        seeds=(0, 1),
        optimizer=optax.sgd(0.05),
        plan=dict(epochs=6),
        model=lambda k: models.MLP((32,), k, use_bias=False),
    )
    events = {}
    for name, settings in (("finetune", {}), ("gpm", dict(threshold=0.95, samples=60))):
        *_, events[name] = protocol.run(problem(name, settings, **options))
    assert events["finetune"].report == {}
    report = events["gpm"].report
    assert list(report) == ["taken"]
    assert list(report["taken"]) == ["hidden_0", "head"]
    for share in report["taken"].values():
        assert share.shape == (2, 3)
        assert (np.diff(share, axis=1) >= 0).all() and (share[:, 0] > 0).all()
    backward = {
        name: jaxcl.metrics.backward_transfer(e.accuracy).mean()
        for name, e in events.items()
    }
    assert backward["gpm"] > backward["finetune"] + 0.05


def test_the_report_survives_an_interruption(problem, tmp_path, finish):
    build = partial(
        problem,
        "gpm",
        dict(threshold=0.9, samples=40),
        kind="permuted",
        scenario="domain",
        seeds=(0, 1),
    )
    whole = finish(build())
    stops = iter([False, False, True] + [False] * 99)
    with pytest.raises(protocol.Interrupted):
        for _ in protocol.run(build(), checkpoints=tmp_path, stop=lambda: next(stops)):
            pass
    resumed = finish(build(), checkpoints=tmp_path)
    assert np.isfinite(resumed.report["taken"]["hidden_0"]).all()
    chex.assert_trees_all_equal(resumed.report, whole.report)
    np.testing.assert_array_equal(resumed.accuracy, whole.accuracy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_stays_out_of_the_subspace_in_any_precision(dtype):
    """A gradient in bfloat16 would be rounded after a projection of its input."""
    p = small_problem(scenario="domain", model=lambda k: models.MLP((64,), k))
    setup = setup_of_problem(p._replace(dtype=dtype))
    assert {layer.dtype for layer in setup.layers} == {dtype}
    net, _ = capture.init_fn(p.model, setup.example)(jax.random.key(0))
    method = gpm(setup, threshold=0.9)
    params = jaxcl.init_params(method, jax.random.key(1), net)
    loss, tx = alone(method, optax.sgd(0.1), setup)
    x = jax.random.uniform(jax.random.key(2), (40, *setup.example.shape[1:]))
    y = jnp.arange(40) % setup.logit_mask.shape[1]
    params, state = jaxcl.after_task(
        method, params, tx.init(params), jaxcl.array_data(x, y, 0), task=0
    )
    ctx = jaxcl.context(x[:8], y[:8], task=1, step=0)
    grads, out = jax.jit(jax.grad(loss, has_aux=True))(params, state.strategy, ctx)
    step, _ = tx.update(grads, state, params, ctx=ctx, out=out)
    (name,) = (n for n in state.strategy.basis if n.startswith("hidden"))
    basis, moved = state.strategy.basis[name], step.net[name]["kernel"]
    inside = jnp.linalg.norm(basis.T @ moved) / jnp.linalg.norm(moved)
    assert 0 < int(state.strategy.count[name]) < len(moved) and float(inside) < 1e-5
