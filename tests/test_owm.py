"""OWM compared with a float64 transcription of the paper, and its guarantees."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alone import alone
from test_gpm import MLP, Net, make_setup, one_step, start, windows
from test_linalg import paper_rls

import jaxcl
from jaxcl.data import sources
from jaxcl.data.scenarios import make_stream
from jaxcl.nn import models
from jaxcl.nn.capture import init_fn
from jaxcl.strategies import finetune, gpm, make, owm
from jaxcl.training import protocol
from jaxcl.training.plan import Plan
from jaxcl.training.problem import Problem


@pytest.fixture(scope="module")
def batches():
    """Ten batches of ten digits."""
    source = sources.load("digits")
    x = source.train_x[:100].reshape(10, 10, 8, 8, 1) / 16.0 - 0.3
    return x.astype(np.float32), source.train_y[:100].reshape(10, 10).astype(np.int32)


def begin(method, net):
    """The method's own trained parameters (aux), and its state."""
    params = jaxcl.init_params(method, jax.random.key(0), net)
    return params.aux, method.init(params)


def step_of(method, setup):
    """The update direction of a step, and the state after it."""

    @jax.jit
    def run(net, ms, aux, state, x, y):
        return one_step(method, setup, net, ms, aux, state, x, y)

    return run


def paper_inverses(net, inverse, x, alpha, conv, every=2):
    """P of every layer after one more batch, float64, from each `every`-th window."""
    w = {n: np.asarray(p["kernel"], np.float64) for n, p in net.items()}
    acts, h = [], x.astype(np.float64)
    if conv:
        for name, shape in (
            ("conv_0", ((3, 3), (2, 2), "SAME")),
            ("conv_1", ((2, 2), (1, 1), "VALID")),
        ):
            rows = windows(h, *shape)
            acts.append((name, rows))
            z = rows @ w[name].reshape(-1, w[name].shape[-1])
            side = int(rows.shape[1] ** 0.5)
            h = np.maximum(z, 0).reshape(len(x), side, side, -1)
    h = h.reshape(len(x), -1)
    for name in ("dense_0", "head") if conv else ("hidden_0", "hidden_1", "head"):
        acts.append((name, h[:, None]))
        h = np.maximum(h @ w[name], 0) if name != "head" else h @ w[name]
    for name, rows in acts:
        side = int(rows.shape[1] ** 0.5)
        mean = rows.mean(0).reshape(side, side, -1)[::every, ::every]
        for sample in mean.reshape(-1, rows.shape[2]):
            inverse[name] = paper_rls(inverse[name], sample, alpha[name])
    return inverse


@pytest.mark.parametrize("form", ["auto", "gradient"])
@pytest.mark.parametrize(
    "model, windows_taken",
    [(MLP(), {}), (Net(), {}), (Net(), {"window_stride": 1})],
    ids=["dense", "conv", "conv, all windows"],
)
def test_it_follows_the_paper_batch_by_batch(batches, model, windows_taken, form):
    """P is updated before the gradient is used, in the first task's batches too."""
    x, y = batches
    setup = make_setup(model)
    names = [layer.name for layer in setup.layers]
    alpha = dict(zip(names, (1.0, 0.5, 0.8, 2.0), strict=False))
    decay = dict(zip(names, (0.1, 0.3, 1.0, 0.5), strict=False))
    method = owm(
        setup,
        alpha=[alpha[n] for n in names],
        alpha_decay=[decay[n] for n in names],
        form=form,
        **windows_taken,
    )
    every = windows_taken.get("window_stride", 2)
    net, ms = start(model)
    aux, state = begin(method, net)
    bare_step, own_step = step_of(finetune(setup), setup), step_of(method, setup)
    paper = {layer.name: np.eye(layer.d_in) for layer in setup.layers}
    for bx, by in zip(x, y, strict=True):
        now = {n: alpha[n] * decay[n] ** 0.5 for n in names}  # half way
        paper = paper_inverses(net, paper, bx, now, isinstance(model, Net), every)
        bare, _ = bare_step(net, ms, aux, (), bx, by)
        u, state = own_step(net, ms, aux, state, bx, by)
        for layer in setup.layers:
            name, p = layer.name, paper[layer.name]
            np.testing.assert_allclose(state.inverse[name], p, atol=1e-5)
            g = np.asarray(bare[name]["kernel"], np.float64).reshape(layer.d_in, -1)
            got = np.asarray(u[name]["kernel"]).reshape(layer.d_in, -1)
            np.testing.assert_allclose(got, p @ g, atol=1e-5)
            assert np.linalg.norm(got - g) > 1e-3 * np.linalg.norm(g)
        net = jax.tree.map(lambda w, u: w - 0.1 * u, net, u)
    report = method.report(state)
    assert list(report) == ["taken"]
    shares = report["taken"]
    assert list(shares) == names
    for name in names:
        expected = 1 - np.trace(paper[name]) / len(paper[name])
        assert float(shares[name]) == pytest.approx(expected, abs=1e-5)


def test_padding_counts_for_nothing(batches):
    """In a partial last batch only the real examples are in the mean."""
    x, y = batches
    setup = make_setup(MLP())
    method = owm(setup)
    net, ms = start(MLP())
    aux, state = begin(method, net)
    out = setup.apply_fn(net, ms, x[0], np.zeros(10, int), jax.random.key(0), True)
    ctx = jaxcl.context(jnp.asarray(x[0]), jnp.asarray(y[0]), task=0)
    weight = jnp.array([1.0] * 4 + [0.0] * 6)
    ctx = ctx._replace(batch=ctx.batch._replace(weight=weight))
    zeros = jaxcl.Params(jax.tree.map(jnp.zeros_like, net), aux)
    _, state = method.grads(zeros, state, None, ctx=ctx, out=out)
    mean = x[0][:4].reshape(4, -1).mean(0).astype(np.float64)
    expected = paper_rls(np.eye(64), mean, 1.0)
    np.testing.assert_allclose(state.inverse["hidden_0"], expected, atol=1e-6)


def test_the_norm_penalty_is_not_squared_and_is_projected(batches):
    x, y = batches
    setup = make_setup(MLP())
    net, ms = start(MLP())
    steps = {}
    for penalty in (0.0, 0.3):
        method = owm(setup, norm_penalty=penalty)
        aux, state = begin(method, net)
        steps[penalty], after = one_step(method, setup, net, ms, aux, state, x[0], y[0])
    for layer in setup.layers:
        w = np.asarray(net[layer.name]["kernel"], np.float64)
        p = np.asarray(after.inverse[layer.name], np.float64)
        added = steps[0.3][layer.name]["kernel"] - steps[0.0][layer.name]["kernel"]
        np.testing.assert_allclose(added, 0.3 * p @ w / np.linalg.norm(w), atol=1e-6)


def test_biases_and_norms_are_never_trained_and_own_heads_are(batches):
    x, y = batches
    model = Net(num_outputs=12, use_bias=True, norm="batch_current")
    setup = make_setup(model, scenario="task")
    net, ms = start(model)
    for where in ("grads", "updates"):
        method = owm(setup, where=where)
        aux, state = begin(method, net)
        assert set(state.inverse) == {"conv_0", "conv_1", "dense_0"}
        u, after = one_step(method, setup, net, ms, aux, state, x[0], y[0] % 4, task=0)
        still = {
            jax.tree_util.keystr(path): not leaf.any()
            for path, leaf in jax.tree_util.tree_leaves_with_path(u)
        }
        moving = {k for k, v in still.items() if not v}
        heads = {"['head']['kernel']", "['head']['bias']"}
        kernels = {f"['{n}']['kernel']" for n in state.inverse}
        assert moving == heads | kernels
        assert u["head"]["kernel"][:, :4].any() and not u["head"]["kernel"][:, 4:].any()
        assert float(method.report(after)["taken"]["dense_0"]) > 0


@pytest.mark.parametrize("method", [owm, partial(gpm, threshold=0.9)])
def test_a_head_that_later_tasks_train_is_projected(method):
    """Class-incremental, a later softmax is over earlier classes, too."""
    model, projected = models.MLP((32, 24), 12), {}
    for scenario in ("task", "domain", "class"):
        setup = make_setup(model, scenario=scenario)
        net, _ = start(model)
        state = method(setup).init(jaxcl.Params(net, {}))
        projected[scenario] = "head" in state[0]
    assert projected == {"task": False, "domain": True, "class": True}
    # Tasks of one's own, told, of which two share one output.
    mask = np.zeros((3, 12), bool)
    mask[[0, 0, 1, 1, 2], [0, 1, 1, 2, 3]] = True
    setup = make_setup(model, scenario="task")._replace(logit_mask=jnp.asarray(mask))
    assert "head" in method(setup).init(jaxcl.Params(net, {}))[0]


def test_class_incremental_earlier_classes_stay():
    """The head is projected, so that later classes do not overwrite earlier ones."""
    stream = make_stream(
        sources.load("digits"), (0, 1), kind="split", scenario="class", num_tasks=5
    )
    acc = {}
    for name, settings in (
        ("finetune", {}),
        ("owm", {"alpha": (0.9, 0.6), "alpha_decay": (1e-3, 1.0)}),
        ("gpm", {"threshold": 0.95}),
    ):
        made = Problem(
            model=models.MLP((200,), stream.num_outputs, use_bias=False),
            stream=stream,
            seeds=(0, 1),
            make_strategy=partial(make, name, settings=settings),
            optimizer=optax.sgd(0.02, momentum=0.9),
            plan=Plan(epochs=5, batch_size=20),
        )
        *_, last = protocol.run(made)
        acc[name] = last.accuracy[:, -1].mean(-1)
    assert (acc["finetune"] < 0.25).all()
    assert (acc["owm"] > 0.7).all() and (acc["gpm"] > 0.7).all(), acc


def official_inverse(inverse, image, size, alpha):
    """A convolution's P after one batch: loops over the mean image, stride 2."""
    height, width, _ = image.shape
    for i in range(0, height - size + 1, 2):
        for j in range(0, width - size + 1, 2):
            window = image[i : i + size, j : j + size].reshape(-1)
            inverse = paper_rls(inverse, window, alpha)
    return inverse


def digit_tasks(batches):
    """Three tasks of the same ten digits, their pixels in orders of their own."""
    rng, (x, y) = np.random.default_rng(2), batches
    for task in range(3):
        order = rng.permutation(64) if task else np.arange(64)
        yield 3 * x.reshape(10, 10, 64)[..., order].reshape(x.shape), y, 0


def test_convolutions_follow_float64_down_to_the_official_alpha(batches):
    decays = {"conv_1": 1e-5, "dense_0": 1e-4}
    model = Net()
    left = follow_float64(
        model,
        make_setup(model),
        digit_tasks(batches),
        {"conv_1": 2, "dense_0": None},
        alpha_decay=(1e-5, 1e-5, 1e-4),
        decays=decays,
        steps=60,
    )
    # A large part of P has been removed.
    assert left["conv_1"] < 0.4


@pytest.mark.minutes
def test_alexnets_convolutions_follow_float64_over_three_tasks(tfds_dir):
    """A quarter of AlexNet's width, no norm, ten classes of CIFAR-100 per task."""
    source = sources.load("cifar100", data_dir=tfds_dir)

    def tasks():
        for task in range(3):
            own = np.flatnonzero(source.train_y // 10 == task)[: 60 * 64]
            x = (source.train_x[own].astype(np.float32) / 255 - 0.5) / 0.27
            yield (
                x.reshape(60, 64, 32, 32, 3),
                source.train_y[own].reshape(60, 64),
                task,
            )

    model = models.AlexNet(30, 1 / 4)
    setup = jaxcl.setup_for_linen(
        model,
        jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32),
        num_outputs=30,
        num_tasks=3,
        heads=(("head",),),
        scenario="task",
    )
    left = follow_float64(
        model,
        setup,
        tasks(),
        {"conv_1": 3, "conv_2": 2},
        alpha_decay=1e-5,
        decays=dict.fromkeys(("conv_1", "conv_2"), 1e-5),
        steps=240,
    )
    assert max(left.values()) < 0.9


def follow_float64(model, setup, tasks, sizes, *, alpha_decay, decays, steps):
    """Trains tasks in one compiled loop: P within 1e-3, each task's ΔW within 1 %.

    A layer whose inputs are all taken, which moves by less than 1e-4 of its norm, is
    off by the rounding of its float32 weights instead: √steps of their spacings.

    Training is as in the official program: α from 1 to 1e-5, momentum .9, lr .02, clip
    10, all restarted with each task. The transcription gets the loop's own taps and
    gradients.

    Args:
      model: a Linen model.
      setup: its `Setup`.
      tasks: for each task (x [N, B, ...], y [N, B], its number).
      sizes: layer -> side of a convolution's window, None for a dense layer.
      alpha_decay: the setting.
      decays: layer -> its own.
      steps: of a task, over its N batches again and again.

    Returns:
      Layer -> tr P / d at the end.
    """
    lr = 0.02
    method = owm(setup, alpha_decay=alpha_decay, project_head=False, form="gradient")
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(lr, 0.9))
    loss, tx = alone(method, optimizer, setup)
    net, ms = init_fn(model, setup.example)(jax.random.key(0))
    aux, state = begin(method, net)

    @jax.jit
    def train(params, state, images, labels, task):
        def step(carry, i):
            params, opt_state = carry
            state, progress = opt_state.strategy, i / steps
            ctx = jaxcl.context(
                images[i % len(images)],
                labels[i % len(images)],
                task=task,
                step=i,
                task_progress=progress,
                model_state=ms,
            )
            g, out = jax.grad(loss, has_aux=True)(params, state, ctx)
            projected, _ = method.grads(g, state, params, ctx=ctx, out=out)
            u, carried = tx.update(g, opt_state, params, ctx=ctx, out=out)
            seen = {n: (out.taps[n].mean(0), g.net[n]["kernel"]) for n in sizes}
            norm = optax.global_norm(projected)
            return (optax.apply_updates(params, u), carried), (seen, norm)

        carry = params, tx.init(params)._replace(strategy=state)
        (params, opt_state), told = jax.lax.scan(step, carry, jnp.arange(steps))
        return params, opt_state.strategy, told

    params = jaxcl.Params(net, aux)
    paper = {name: np.eye(state.inverse[name].shape[0]) for name in sizes}
    for x, y, task in tasks:
        before = params.net
        params, state, (seen, norm) = train(
            params, state, jnp.asarray(x), jnp.asarray(y), jnp.int32(task)
        )
        for name, size in sizes.items():
            taps, grads = (np.asarray(a, np.float64) for a in seen[name])
            moved, velocity = 0.0, 0.0
            for i in range(steps):
                alpha = decays[name] ** np.float64(np.float32(i / steps))
                if size:
                    paper[name] = official_inverse(paper[name], taps[i], size, alpha)
                else:
                    paper[name] = paper_rls(paper[name], taps[i], alpha)
                g = paper[name] @ grads[i].reshape(len(paper[name]), -1)
                velocity = 0.9 * velocity + min(1.0, 10 / norm[i]) * g
                moved = moved - lr * velocity
            old = np.asarray(before[name]["kernel"], np.float64).reshape(moved.shape)
            change = params.net[name]["kernel"].reshape(moved.shape) - old
            assert relative(state.inverse[name], paper[name]) < 1e-3
            size, off = np.linalg.norm(old), np.linalg.norm(change - moved)
            if np.linalg.norm(moved) > 1e-4 * size:
                assert off < 0.01 * np.linalg.norm(moved)
            else:
                assert off < 2 * np.sqrt(steps) * 2.0**-23 * size
    return {name: np.trace(p) / len(p) for name, p in paper.items()}


def relative(got, want):
    return np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)


def test_a_run_learns_in_the_space_left_and_forgets_less(problem, finish):
    options = dict(
        kind="permuted",
        scenario="domain",
        seeds=(0, 1),
        plan=dict(epochs=6),
        model=lambda k: models.MLP((64,), k, use_bias=False),
    )
    plain = finish(problem(optimizer=optax.sgd(0.05), **options))
    last = finish(problem("owm", {}, optimizer=optax.sgd(0.3), **options))
    backward = jaxcl.metrics.backward_transfer
    assert backward(last.accuracy).mean() > backward(plain.accuracy).mean() + 0.03
    assert np.diagonal(last.accuracy, axis1=1, axis2=2).min() > 0.5
    assert list(last.report) == ["taken"]
    for share in last.report["taken"].values():
        assert (np.diff(share, axis=1) > 0).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(alpha=0.0), "alpha must be greater than 0, got 0.0"),
        (dict(alpha=[1.0, 1.0]), "alpha .* has 2 entries for 3 projected layers"),
        (dict(alpha_decay=-1.0), "alpha_decay must be greater than 0"),
        (dict(progress="run"), "epoch, task, got 'run'"),
        (dict(window_stride=0), "window_stride must be at least 1, got 0"),
        (dict(norm_penalty=-1.0), "norm_penalty must be at least 0, got -1.0"),
        (dict(where="after"), "grads, updates, got 'after'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        owm(make_setup(MLP()), **settings)


def test_an_optimizer_that_undoes_it_is_warned_of():
    setup = make_setup(MLP())
    plain = optax.chain(optax.clip_by_global_norm(10), optax.sgd(0.1, 0.9))
    with pytest.warns(UserWarning, match='projects gradients.*where="updates"'):
        jaxcl.transform_optimizer(owm(setup), optax.adam(1e-3), setup)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxcl.transform_optimizer(owm(setup), plain, setup)
        after = owm(setup, where="updates")
        jaxcl.transform_optimizer(after, optax.adam(1e-3), setup)
