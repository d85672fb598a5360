"""A-GEM against a float64 transcription, its projection's promise, its edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref

import jaxcl
from jaxcl import transforms
from jaxcl.nn import capture
from jaxcl.ops import sampling
from jaxcl.ops.trees import tree_dot
from jaxcl.strategies import finetune
from jaxcl.strategies.agem import DRAW, agem, classes_per_task, reference_gradient
from jaxcl.testing import small_problem
from jaxcl.training.problem import make_setup, setup_of


def numpy_memory(setup, per_task, per_class, x, y, task):
    """The rows that `after_task` keeps, chosen with the same random draws."""
    data = ref.jaxcl.array_data(jnp.asarray(x), y, task)
    position, keep = sampling.choose(
        data, jax.random.key(200 + task), per_task=per_task, per_class=per_class
    )
    rows = np.asarray(position)[np.asarray(keep)]
    return x[rows], y[rows], np.full(len(rows), task)


@pytest.mark.parametrize(
    "scenario, per_task, per_class", [("task", None, 3), ("class", 7, None)]
)
def test_equals_the_paper_s_rule_over_three_tasks(scenario, per_task, per_class):
    with jax.enable_x64(True):
        setup = ref.make_setup(scenario)
        net, tasks, lr, n = ref.make_net(), ref.make_tasks(setup), 0.5, 8
        method = agem(setup, per_task=per_task, per_class=per_class, batch_size=n)
        got = ref.run(method, setup, net, tasks, optax.sgd(lr))
        held: list = [np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)]
        projected = []

        def gradient(net, t, i, x, y):
            rows = np.full(len(y), t)
            mask = ref.mask_rows(setup, rows, t)
            g = ref.backward(
                net, x, ref.cross_entropy_dz(ref.logits(net, x)[1], y, mask)
            )
            if t == 0:
                return g
            key = jax.random.fold_in(ref.step_key(t, i), DRAW)
            slot = np.asarray(jax.random.randint(key, (n,), 0, len(held[1])))
            mx, my, mt = (leaf[slot] for leaf in held)
            mask = ref.mask_rows(setup, mt, t)
            r = ref.backward(
                net, mx, ref.cross_entropy_dz(ref.logits(net, mx)[1], my, mask)
            )
            flat_g, flat_r = (
                np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
                for tree in (g, r)
            )
            projected.append(flat_g @ flat_r < 0)
            if flat_g @ flat_r >= 0:
                return g
            return ref.add(g, ref.scale(-(flat_g @ flat_r) / (flat_r @ flat_r), r))

        def after_task(net, t, x, y):
            new = numpy_memory(setup, per_task, per_class, x, y, t)
            held[:] = [np.concatenate(pair) for pair in zip(held, new, strict=True)]

        want = ref.run_reference(net, tasks, lr, gradient, after_task)
        assert any(projected) and (scenario == "class" or not all(projected))
        for (net_got, _), net_want in zip(got, want, strict=True):
            ref.assert_close(net_got, net_want)
        store = got[-1][1]
        size = int(store.size)
        assert size == len(held[1]) == 3 * (7 if per_task else 6)
        ref.assert_close([store.x[:size], store.y[:size], store.task[:size]], held)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_never_against_the_reference(dtype):
    """⟨g', r⟩ ≥ −1e-5 ‖g‖ ‖r‖, and g is unchanged if it did not conflict."""
    with jax.enable_x64(dtype == jnp.float64):
        project = transforms.project_conflicting()

        def one(args):
            key, scale = args
            keys = jax.random.split(key, 4)
            g = {
                "a": scale * jax.random.normal(keys[0], (30, 7), dtype),
                "b": scale * jax.random.normal(keys[1], (5,), dtype),
            }
            pull = jax.random.uniform(key, (), dtype, -1, 1) / scale
            r = {
                "a": jax.random.normal(keys[2], (30, 7), dtype) + pull * g["a"],
                "b": jax.random.normal(keys[3], (5,), dtype),
            }
            new, _ = project.update(g, project.init(g), reference=r)
            norm = jnp.sqrt(tree_dot(g, g) * tree_dot(r, r))
            same = jax.tree.map(lambda a, b: (a == b).all(), new, g)
            return tree_dot(g, r), tree_dot(new, r) / norm, same

        keys = jax.random.split(jax.random.key(0), 600)
        scales = jnp.repeat(jnp.array([1e-12, 1.0, 1e8], dtype), 200)
        before, after, same = jax.lax.map(one, (keys, scales))
        assert (np.asarray(before) < 0).any() and (np.asarray(before) > 0).any()
        assert np.asarray(after).min() >= -1e-5
        free = np.asarray(before) >= 0
        assert np.asarray(same["a"])[free].all() and np.asarray(same["b"])[free].all()


def test_a_zero_reference_changes_nothing():
    g = {"w": jnp.array([1.0, -2.0])}
    tx = optax.chain(transforms.project_conflicting(), optax.sgd(1.0))
    zero = jax.tree.map(jnp.zeros_like, g)
    step, _ = tx.update(g, tx.init(g), g, reference=zero)
    assert step["w"].tolist() == [-1.0, 2.0]
    # A reference so small that its square is 0 must not divide by it either.
    tiny = jax.tree.map(lambda a: -a * 1e-30, g)
    step, _ = tx.update(g, tx.init(g), g, reference=tiny)
    assert step["w"].tolist() == [-1.0, 2.0]


def test_the_whole_vector_decides_not_each_leaf():
    project = transforms.project_conflicting()
    g = {"a": jnp.array([1.0]), "b": jnp.array([3.0])}
    r = {"a": jnp.array([-1.0]), "b": jnp.array([1.0])}
    same, _ = project.update(g, project.init(g), reference=r)
    assert (same["a"].item(), same["b"].item()) == (1.0, 3.0)


def test_the_first_task_is_fine_tuning():
    ref.assert_neutral(lambda setup: agem(setup))


def test_a_step_that_does_not_conflict_is_bp(problem):
    """Bit for bit, with a task in the memory; a step that conflicts differs from BP."""
    small = problem()
    setup = make_setup(small.model, small.stream, 8)
    net, _ = capture.init_fn(small.model, setup.example)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (24, 4, 4, 1))
    y = jnp.arange(24) % 2
    params = jaxcl.Params(net, {})
    method = agem(setup, per_class=2, batch_size=4)
    data = jaxcl.array_data(x, y, 0)
    start = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup).init(params)
    stored = jaxcl.after_task(method, params, start, data, task=0)[1].strategy
    seen = {True: 0, False: 0}

    @jax.jit
    def both(seed):
        new = jax.random.normal(jax.random.key(seed + 100), (8, 4, 4, 1))
        ctx = jaxcl.context(new, y[:8] + 2, task=1, step=1, seed=seed)
        updates = []
        for strategy, state in ((method, stored), (finetune(setup), ())):
            tx = jaxcl.transform_optimizer(strategy, optax.sgd(0.1), setup)
            opt_state = tx.init(params)._replace(strategy=state)
            loss = jaxcl.transform_loss(strategy, setup)
            g, out = jax.grad(loss, has_aux=True)(params, state, ctx)
            updates.append(tx.update(g, opt_state, params, ctx=ctx, out=out)[0].net)
        r = reference_gradient(setup, net, 4, stored, ctx)
        return updates, tree_dot(g.net, r) < 0

    for seed in range(40):
        (ours, bp), conflicts = both(seed)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), ours, bp)
        assert all(jax.tree.leaves(same)) == (not conflicts)
        seen[bool(conflicts)] += 1
    assert all(seen.values()), seen


def test_memory_larger_than_the_data_holds_all_of_it():
    setup = ref.make_setup("domain", outputs=3)
    tasks = ref.make_tasks(setup, n=2 * ref.BATCH)
    net = jax.tree.map(np.float32, ref.make_net(outputs=3))
    tasks = [(x.astype(np.float32), y) for x, y in tasks]
    history = ref.run(
        agem(setup, per_task=50, per_class=None, batch_size=4),
        setup,
        net,
        tasks,
        optax.sgd(0.1),
    )
    store = history[-1][1]
    assert store.size == 3 * 2 * ref.BATCH and store.y.shape == (150,)
    everything = np.concatenate([x for x, _ in tasks])
    np.testing.assert_array_equal(
        np.unique(store.x[: store.size], axis=0), np.unique(everything, axis=0)
    )


def end(method, params, state, data):
    """The state after task 0."""

    @jax.jit
    def after_task(state):
        of_task = dict(data=data, model_state=(), task=0, key=jax.random.key(0))
        return method.after_task(params, state, **of_task)[1]

    return after_task(state)


def test_fewer_slots_than_classes_and_a_class_never_seen():
    setup = ref.make_setup("domain", outputs=5)
    method = agem(setup, per_task=2, per_class=None)
    params, state = ref.start(method, ref.make_net(outputs=5))
    data = ref.jaxcl.array_data(jnp.ones((12, 4)), np.arange(12) % 5)
    state = end(method, params, state, data)
    assert int(state.size) == 2 and state.y.shape == (6,)

    method = agem(setup, per_class=2)
    params, state = ref.start(method, ref.make_net(outputs=5))
    data = ref.jaxcl.array_data(jnp.ones((12, 4)), np.arange(12) % 2)
    state = end(method, params, state, data)
    assert np.bincount(state.y[: int(state.size)]).tolist() == [2, 2]
    assert state.y.shape == (3 * 5 * 2,)


@pytest.mark.parametrize(
    "scenario, expected", [("task", 2), ("class", 2), ("domain", 6)]
)
def test_classes_per_task(scenario, expected):
    assert classes_per_task(ref.make_setup(scenario)) == expected


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.filterwarnings("ignore:.*one class and a head of its own")
def test_tasks_of_unequal_size_fit(problem, finish, scenario):
    """Six classes in four tasks, 2, 2, 1 and 1: room for 4 · 2 · 5, 30 taken."""
    made = []

    def make(setup):
        assert classes_per_task(setup) == 2
        method = agem(setup, per_class=5, batch_size=16)
        made.append(method.init(ref.jaxcl.Params({}, {})))
        return method._replace(report=lambda s: {"kept": {"memory": s.size / 30}})

    run = problem(make_strategy=make, scenario=scenario, num_tasks=4)
    last = finish(run)
    assert made[0].y.shape == (40,)
    kept = last.report["kept"]["memory"][0]
    np.testing.assert_allclose(kept, [10 / 30, 20 / 30, 25 / 30, 1])
    assert np.isfinite(last.accuracy).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"per_class": 5, "per_task": 3},
            "only one of per_class and per_task .* 5 and 3",
        ),
        ({"per_class": None}, "per_class=None needs per_task, got None"),
        ({"per_class": 0}, "per_class must be at least 1.*, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        agem(ref.make_setup(), **settings)


@pytest.mark.parametrize(
    "kind, scenario",
    [("split", each) for each in ("task", "domain", "class")]
    + [(each, "domain") for each in ("permuted", "rotated")],
)
def test_where_no_class_comes_again_the_memory_is_that_of_the_new_outputs(
    kind, scenario
):
    more = {"angle_step": 10.0} if kind == "rotated" else {}
    setup = setup_of(small_problem(kind=kind, scenario=scenario, **more))
    before = setup._replace(num_classes=())
    assert classes_per_task(setup) == classes_per_task(before)
