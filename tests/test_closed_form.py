"""Heads in closed form: their answers, when they learn, and from which features."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_discriminant import batch_lda

import jaxcl
from jaxcl.nn import models
from jaxcl.nn.capture import init_fn
from jaxcl.strategies import frozen, hat, make, ncm, random_features, slda
from jaxcl.strategies._chained import chain_factories
from jaxcl.strategies._closed_form import answer
from jaxcl.testing.problem import TASKS
from jaxcl.training.problem import make_setup
from jaxcl.types import Output

ROWS = 24


def gaussian_rule(x, y, shrinkage=1e-4):
    """A float64 function from features to a class, among the classes in y."""
    weights, bias, centre, _ = batch_lda(x, y, shrinkage)
    classes = np.unique(y)
    return lambda x: classes[((x - centre) @ weights + bias).argmax(1)]


def mean_rule(x, y):
    classes = np.unique(y)
    mean = np.stack([x[y == k].mean(0, dtype=np.float64) for k in classes])
    return lambda x: classes[((x[:, None] - mean) ** 2).sum(-1).argmin(1)]


def data_of(problem, seed, part, task):
    """x [N, D] in float64 and y of a seed's task."""
    mine = jax.tree.map(lambda leaf: leaf[seed], problem.stream.per_seed)
    view = problem.stream.view(problem.stream.base, mine, part, task)
    batch = view.take(np.arange(int(view.size)))
    x = np.asarray(batch.x, np.float64)
    return x.reshape(len(x), -1), np.asarray(batch.y)


PIXELS = {"model": models.Linear, "scenario": "class"}


def noisy(problem):
    """Images of overlapping classes, so that accuracies differ between classifiers."""
    rng, base = np.random.default_rng(0), problem.stream.base

    def blur(x):
        return np.clip(x + rng.normal(0, 100, x.shape), 0, 255).astype(np.uint8)

    base = base._replace(train_x=blur(base.train_x), test_x=blur(base.test_x))
    return problem._replace(stream=problem.stream._replace(base=base))


@pytest.mark.parametrize("mode", ["map", "vmap"])
@pytest.mark.parametrize("name, rule", [("slda", gaussian_rule), ("ncm", mean_rule)])
def test_a_run_on_pixels_equals_all_data_at_once(problem, finish, mode, name, rule):
    """In the compiled loop, with three seeds on two devices, after each task on all."""
    p = noisy(problem(name, {"chunk": 32}, seed_mode=mode, **PIXELS))
    accuracy = finish(p).accuracy
    for seed in range(3):
        seen = []
        for i in range(TASKS):
            seen.append(data_of(p, seed, "train", i))
            answer = rule(*(np.concatenate(part) for part in zip(*seen, strict=True)))
            for j in range(i + 1):
                x, y = data_of(p, seed, "test", j)
                wanted = (answer(x) == y).mean()
                assert abs(accuracy[seed, i, j] - wanted) < 1e-6
    assert (accuracy[:, 2, 0] < accuracy[:, 0, 0]).all()  # it has to tell more apart


def test_joint_training_does_not_count_an_example_twice(problem, finish):
    """It repeats earlier tasks' examples, which the head has already absorbed."""
    plain = finish(noisy(problem("slda", seeds=(0,), **PIXELS))).accuracy
    joint = noisy(problem("slda", seeds=(0,), joint=True, **PIXELS))
    joint = finish(joint).accuracy
    np.testing.assert_array_equal(joint, plain)


@pytest.fixture
def parts(problem):
    """Setup, network, statistics and batches of each task."""

    def build(scenario="class", **model):
        p = problem(
            model=lambda k: models.MLP((12,), k, num_tasks=TASKS, **model),
            scenario=scenario,
        )
        setup = make_setup(p.model, p.stream, ROWS)
        net, statistics = init_fn(p.model, setup.example)(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (TASKS, ROWS, 4, 4, 1))
        y = jnp.arange(ROWS) % 2 + 2 * jnp.arange(TASKS)[:, None]
        return setup, net, statistics, x, y

    return build


def forward(method, setup, params, state, statistics, x, task, train=False):
    ctx = jaxcl.context(x, jnp.zeros(len(x), int), task=task, model_state=statistics)
    f = method.forward(setup.apply_fn, state, params.aux, ctx=ctx)
    example_task = jnp.full(len(x), task, jnp.int32)
    return f(params.net, statistics, x, example_task, ctx.key, train)


def end_task(method, setup, params, state, statistics, x, y, task):
    return method.after_task(
        params,
        state,
        data=jaxcl.array_data(x, y, task),
        model_state=statistics,
        task=jnp.asarray(task, jnp.int32),
        key=jax.random.key(task),
    )


def moved(params, by):
    return params._replace(net=jax.tree.map(lambda leaf: leaf + by, params.net))


def test_means_are_of_the_features_as_each_task_left_them(parts):
    setup, net, statistics, x, y = parts()
    method = slda(setup, shrinkage=0.1, chunk=7)
    params = jaxcl.init_params(method, jax.random.key(2), net)
    state, kept = method.init(params), []
    for task in range(TASKS):
        params = moved(params, 0.1 * task)
        out = forward(method, setup, params, state, statistics, x[task], task)
        kept.append(np.asarray(out.taps["head"], np.float64))
        params, state = end_task(
            method, setup, params, state, statistics, x[task], y[task], task
        )
    features, classes = np.concatenate(kept), np.asarray(y).reshape(-1)
    weights, bias, centre, _ = batch_lda(features, classes, 0.1)
    np.testing.assert_allclose(
        state.head.weights, weights, atol=1e-3 * np.abs(weights).max()
    )
    out = forward(method, setup, params, state, statistics, x[0], TASKS - 1)
    now = np.asarray(out.taps["head"], np.float64)
    assert np.abs(now - kept[0]).max() > 0.1  # the features have moved since
    wanted = (now - centre) @ weights + bias
    np.testing.assert_allclose(out.logits, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("factory", [ncm, slda, random_features])
def test_while_a_task_trains_the_networks_own_classifier_answers(parts, factory):
    setup, net, statistics, x, y = parts()
    method = factory(setup)
    params = jaxcl.init_params(method, jax.random.key(2), net)
    state = method.init(params)
    for task in range(2):
        example_task = jnp.full(ROWS, task, jnp.int32)
        for train in (False, True):
            own = setup.apply_fn(
                net, statistics, x[task], example_task, jax.random.key(0), train
            )
            out = forward(
                method, setup, params, state, statistics, x[task], task, train
            )
            np.testing.assert_array_equal(out.logits, own.logits)
        params, state = end_task(
            method, setup, params, state, statistics, x[task], y[task], task
        )
        out = forward(method, setup, params, state, statistics, x[task], task)
        assert (
            np.abs(out.logits[:, : 2 * task + 2] - own.logits[:, : 2 * task + 2]).max()
            > 0.1
        )
        # Classes that no task has had yet.
        assert (out.logits[:, 2 * task + 2 :] == np.finfo(np.float32).min / 2).all()


def test_training_is_not_changed(parts):
    setup, net, statistics, x, y = parts()
    stepped = []
    for method in (jaxcl.strategy(), slda(setup)):
        params = jaxcl.init_params(method, jax.random.key(2), net)
        tx = jaxcl.transform_optimizer(method, optax.adam(0.1), setup)
        opt_state = tx.init(params)
        ctx = jaxcl.context(x[0], y[0], task=0, model_state=statistics)
        loss = jaxcl.transform_loss(method, setup)
        g, out = jax.grad(loss, has_aux=True)(params, opt_state.strategy, ctx)
        updates, _ = tx.update(g, opt_state, params, ctx=ctx, out=out)
        stepped.append(optax.apply_updates(params, updates).net)
    chex.assert_trees_all_equal(*stepped)


def test_behind_hat_it_reads_gated_features(parts):
    setup, net, statistics, x, y = parts("task")
    method = jaxcl.chain(hat(setup), slda(setup, shrinkage=0.1))
    params = jaxcl.init_params(method, jax.random.key(2), net)
    state = method.init(params)
    for task in range(2):
        out = forward(method, setup, params, state, statistics, x[task], task)
        params, state = end_task(
            method, setup, params, state, statistics, x[task], y[task], task
        )
        gated = np.asarray(out.taps["head"], np.float64)
        for k in (2 * task, 2 * task + 1):
            mean = gated[np.asarray(y[task]) == k].mean(0)
            np.testing.assert_allclose(state[1].means.mean[k], mean, atol=1e-5)
        assert (gated == 0).all(0).any()  # some gates are closed


def test_behind_frozen_it_reads_the_first_tasks_statistics(parts):
    setup, net, statistics, x, y = parts("task", norm="batch_per_task")
    method = jaxcl.chain(frozen(setup), ncm(setup))
    params = jaxcl.init_params(method, jax.random.key(2), net)
    state = method.init(params)
    for i in range(20):
        first = jnp.zeros(ROWS, jnp.int32)
        out = setup.apply_fn(
            net, statistics, 2 + 3 * x[0], first, jax.random.key(i), True
        )
        statistics = out.model_state
    params, state = end_task(method, setup, params, state, statistics, x[1], y[1], 1)
    out = setup.apply_fn(net, statistics, x[1], first, jax.random.key(0), False)
    mean = np.asarray(out.taps["head"])[np.asarray(y[1]) == 3].mean(0)
    np.testing.assert_allclose(state[1].means.mean[3], mean, atol=1e-5)
    # In chains of chains too.
    nested = jaxcl.chain(frozen(setup), jaxcl.chain(jaxcl.strategy(), ncm(setup)))
    params = jaxcl.init_params(nested, jax.random.key(2), net)
    _, state = end_task(
        nested, setup, params, nested.init(params), statistics, x[1], y[1], 1
    )
    np.testing.assert_allclose(state[1][1].means.mean[3], mean, atol=1e-5)


def test_random_features_are_drawn_once_and_equal_float64(parts):
    setup, net, statistics, x, y = parts()
    method = random_features(setup, width=400, shrinkage=0.05, chunk=10)
    params = jaxcl.init_params(method, jax.random.key(2), net)
    state, features = method.init(params), []
    for task in range(TASKS):
        params, state = end_task(
            method, setup, params, state, statistics, x[task], y[task], task
        )
        if task == 0:
            projection = np.asarray(state.projection, np.float64)
        out = forward(method, setup, params, state, statistics, x[task], task)
        h = np.asarray(out.taps["head"], np.float64)
        features.append(np.maximum(h @ projection, 0))
    np.testing.assert_array_equal(state.projection, projection.astype(np.float32))
    assert abs(projection.var() * 12 - 1) < 0.1 and abs(projection.mean()) < 0.02
    phi, classes = np.concatenate(features), np.asarray(y).reshape(-1)
    weights, bias, centre, _ = batch_lda(phi, classes, 0.05)
    error = np.linalg.norm(state.slda.head.weights - weights) / np.linalg.norm(weights)
    assert error < 1e-3
    wanted = (features[-1] - centre) @ weights + bias
    np.testing.assert_allclose(out.logits, wanted, atol=1e-3 * np.abs(wanted).max())
    _, other = method.after_task(
        params,
        method.init(params),
        data=jaxcl.array_data(x[0], y[0]),
        model_state=statistics,
        task=jnp.zeros((), jnp.int32),
        key=jax.random.key(77),
    )
    assert np.abs(other.projection - projection).max() > 0.1


def test_what_they_cannot_read_is_refused(parts):
    setup = parts()[0]
    for factory in (ncm, slda, random_features):
        name = factory.__name__
        with pytest.raises(ValueError, match=f"{name}: chunk .*got 0"):
            factory(setup, chunk=0)
        with pytest.raises(ValueError, match=f"{name} reads .*nosuch.*name \\[\\]"):
            factory(setup._replace(heads=(("nosuch",),)))
        with pytest.raises(ValueError, match="hidden_0', 'head'"):
            factory(setup._replace(heads=(("hidden_0",), ("head",))))
        layers = tuple(x._replace(positions=4) for x in setup.layers)
        with pytest.raises(ValueError, match="'head': it is dense, read at 4 places"):
            factory(setup._replace(layers=layers))
    for factory in (slda, random_features):
        with pytest.raises(ValueError, match=r"shrinkage must lie in \(0, 1\], got 0"):
            factory(setup, shrinkage=0.0)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        random_features(setup, width=0)


def test_factories_chained_have_the_settings_of_all(parts):
    setup = parts()[0]
    chained = chain_factories(frozen, slda)
    assert chained.__name__ == "frozen_slda"
    method = chained(setup, epochs=0, chunk=5)
    params = jaxcl.init_params(method, jax.random.key(0), parts()[1])
    assert len(method.init(params)) == 2
    with pytest.raises(TypeError, match="nosuch"):
        chained(setup, nosuch=1)
    with pytest.raises(ValueError, match="its settings are: epochs, shrinkage, chunk"):
        make("frozen_slda", setup, {"nosuch": 1})
    with pytest.raises(ValueError, match="ncm_slda: .* a setting 'chunk'"):
        chain_factories(ncm, slda)


def test_streamed_mnist_equals_batch_lda(tfds_dir):
    """Real data, task after task: 99.9 % of the answers, weights within 1e-3."""
    from jaxcl.data import sources

    source = sources.load("mnist")
    x, test = (
        jnp.asarray(part, jnp.float32).reshape(len(part), 28, 28, 1) / 255
        for part in (source.train_x, source.test_x)
    )
    y = np.asarray(source.train_y)
    model = models.Linear(10)
    setup = jaxcl.setup_for_linen(
        model,
        jax.ShapeDtypeStruct((4, 28, 28, 1), jnp.float32),
        num_outputs=10,
        num_tasks=5,
        heads=(("head",),),
        scenario="class",
    )
    net, _ = init_fn(model, setup.example)(jax.random.key(0))
    method = slda(setup)
    params = jaxcl.init_params(method, jax.random.key(1), net)
    state = method.init(params)
    end = jax.jit(
        lambda state, x, y, task: end_task(
            method, setup, params, state, {}, x, y, task
        )[1]
    )
    for task in range(5):
        rows = np.flatnonzero(y // 2 == task)
        state = end(state, x[rows], y[rows], task)
    out = forward(method, setup, params, state, {}, test, 4)
    pixels = np.asarray(x).reshape(len(x), -1)
    pixels_test = np.asarray(test, np.float64).reshape(len(test), -1)
    mean = np.stack([pixels[y == k].mean(0, dtype=np.float64) for k in range(10)])
    rest = pixels.astype(np.float64) - mean[y]
    a = (1 - 1e-4) * rest.T @ rest / len(x) + 1e-4 * np.eye(784)
    centre = pixels.mean(0, dtype=np.float64)
    weights = np.linalg.solve(a, (mean - centre).T)
    bias = -0.5 * ((mean - centre).T * weights).sum(0)
    answers = ((pixels_test - centre) @ weights + bias).argmax(1)
    assert (np.asarray(out.logits).argmax(1) == answers).mean() >= 0.999
    error = np.linalg.norm(state.head.weights - weights) / np.linalg.norm(weights)
    assert error < 1e-3
    right = (np.asarray(out.logits).argmax(1) == np.asarray(source.test_y)).mean()
    assert abs(right - 0.874) < 0.002


@pytest.mark.parametrize("name", ["ncm", "slda", "random_features"])
def test_a_task_without_a_class_seen_is_answered_by_one_of_its_own(
    problem, finish, name
):
    """By its first class: at chance, and not by an output of another task."""
    p = problem(name, {}, scenario="task")
    accuracy = finish(p).accuracy
    for seed in range(len(accuracy)):
        for task in range(1, TASKS):
            _, y = data_of(p, seed, "test", task)
            first = float((y == y.min()).mean())
            assert accuracy[seed, task - 1, task] == pytest.approx(first)


def test_unseen_classes_are_finite_in_bfloat16():
    """The lowest float32 is −∞ there, which turns a softmax over such rows into NaN."""
    lowest = jnp.full((2, 3), jnp.finfo(jnp.float32).min)

    def net(net, model_state, x, task, key, train):
        return Output(jnp.zeros((2, 3), jnp.bfloat16), {}, {"head": x})

    setup = jaxcl.setup_for(
        lambda net, x: jaxcl.nn.dense(x, net["w"], name="head"),
        jnp.zeros((2, 4)),
        net={"w": jnp.zeros((4, 3))},
        num_outputs=3,
        num_tasks=1,
        heads=(("w",),),
        scenario="domain",
    )
    ctx = jaxcl.context(jnp.zeros((2, 4)), jnp.zeros(2, int), task=0)
    f = answer(net, setup.layers[0], jnp.int32(1), ctx, lambda x: lowest)
    logits = f({}, {}, ctx.batch.x, ctx.batch.task, ctx.key, False).logits
    assert logits.dtype == jnp.bfloat16 and jnp.isfinite(logits).all()
