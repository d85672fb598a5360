"""What a reading of the whole library found, each with the right value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import features
from jaxcl.data import make_stream
from jaxcl.nn.layers import Dropout, Norm
from jaxcl.ops.linalg import rls_update
from jaxcl.strategies import agem, er, finetune, frozen, hat, ol
from jaxcl.testing import small_problem, small_source
from jaxcl.training.instruments import make_instruments
from jaxcl.training.plan import Plan, validate_plan
from jaxcl.training.problem import init_of, setup_of, strategy_for, validate
from jaxcl.training.schedule import task_length
from jaxcl.training.seeds import SeedMesh


def parts(scenario, make, **fields):
    """A method on the small problem's network: setup, method, params, state, tx."""
    problem = small_problem(scenario=scenario, **fields)
    setup = setup_of(problem)
    net, _ = init_of(problem)(jax.random.key(0))
    method = make(setup)
    params = jaxcl.init_params(method, jax.random.key(1), net)
    tx = jaxcl.transform_optimizer(method, optax.sgd(0.1), setup)
    return problem, setup, method, params, tx.init(params), tx


def test_the_last_task_is_told_where_it_decides_which_classes_can_be_answered():
    _, setup, method, params, state, _ = parts("class", finetune)
    x = jnp.zeros(setup.example.shape, setup.example.dtype)
    with pytest.raises(ValueError, match="current must be given in a class-incr"):
        jaxcl.predict(method, setup, params, state, x, task=0)
    for scenario in ("task", "domain"):  # there it decides nothing
        kind = {"kind": "permuted"} if scenario == "domain" else {}
        _, setup, method, params, state, _ = parts(scenario, finetune, **kind)
        given = jaxcl.predict(method, setup, params, state, x, task=0, current=1)
        same = jaxcl.predict(method, setup, params, state, x, task=0)
        np.testing.assert_array_equal(given, same)


def test_replayed_rows_have_the_gates_of_their_own_task():
    """HAT beside replay: rows of past tasks pass as at evaluation, others annealed."""
    _, setup, chained, params, state, _ = parts(
        "task", lambda s: jaxcl.chain(hat(s), er(s, capacity=8, batch_size=4))
    )
    alone = hat(setup)
    x = jax.random.normal(jax.random.key(2), setup.example.shape)
    n = len(x)
    y = jnp.full((n,), 2)
    moment = {"epoch_progress": 0.25, "key": jax.random.key(3)}
    ctx = jaxcl.context(x, y, task=1, **moment)
    rows = jnp.arange(n) % 2  # of task 0 and task 1, in turns
    apply = chained.forward(setup.apply_fn, state.strategy, params.aux, ctx=ctx)
    mixed = apply(params.net, {}, x, rows, ctx.key, True).logits

    def of_hat(ctx, task, train):
        f = alone.forward(setup.apply_fn, state.strategy[0], params.aux[0], ctx=ctx)
        return f(params.net, {}, x, jnp.full((n,), task), ctx.key, train).logits

    now, then = of_hat(ctx, 1, True), of_hat(ctx, 0, False)
    right = jnp.where(rows[:, None] == 1, now, then)
    np.testing.assert_allclose(mixed, right, atol=1e-5)
    assert jnp.abs(now - then).max() > 1e-3

    def of_past(aux):
        f = chained.forward(setup.apply_fn, state.strategy, aux, ctx=ctx)
        out = f(params.net, {}, x, jnp.zeros((n,), jnp.int32), ctx.key, True)
        return out.logits.sum()

    learned = jax.grad(of_past)(params.aux)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(learned))


def test_joint_training_gates_each_row_by_its_own_task():
    """Its batches hold rows of other tasks; so do those of replay."""
    setup = setup_of(small_problem())
    joint = small_problem(hat, joint=True)
    made, alone = strategy_for(joint, setup), strategy_for(small_problem(hat), setup)
    net, _ = init_of(joint)(jax.random.key(0))
    params = jaxcl.init_params(made, jax.random.key(1), net)
    x = jax.random.normal(jax.random.key(2), setup.example.shape)
    rows = jnp.arange(len(x)) % 2
    ctx = jaxcl.context(x, 2 * rows, task=1, epoch_progress=0.25)

    def logits(method, rows, train):
        state = method.init(params)
        f = method.forward(setup.apply_fn, state, params.aux, ctx=ctx)
        return f(params.net, {}, x, rows, ctx.key, train).logits

    now = logits(alone, jnp.ones_like(rows), True)
    then = logits(alone, jnp.zeros_like(rows), False)
    right = jnp.where(rows[:, None] == 1, now, then)
    np.testing.assert_allclose(logits(made, rows, True), right, atol=1e-5)


@pytest.mark.parametrize("change", [{"flip": True}, {"crop_padding": 1}])
def test_permuted_pixels_are_not_mirrored(change):
    options = dict(seeds=(0,), num_tasks=2, scenario="domain")
    with pytest.raises(ValueError, match="flip and crop_padding are for images"):
        make_stream(small_source(), kind="permuted", **options, **change)
    make_stream(small_source(), kind="rotated", angle_step=30.0, **options, **change)


@pytest.mark.parametrize("flip, held", [(False, True), (True, False)])
def test_nothing_is_computed_beforehand_for_inputs_that_change(flip, held):
    """Features of a frozen extractor: augmented steps never read them."""
    problem, setup, method, params, state, _ = parts("task", frozen, flip=flip)
    stream = problem.stream
    mine = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stream.per_seed)
    data = stream.view(jax.tree.map(jnp.asarray, stream.base), mine, "train", 1)
    cache = jaxcl.before_task(method, params, state, data, task=1, setup=setup)
    assert data.changes == flip and bool(jax.tree.leaves(cache)) == held


def test_a_restarted_optimizer_has_gathered_nothing():
    """No head of an old task is in play in the new one's first updates."""
    problem, setup, method, params, _, _ = parts("task", finetune)
    inner = optax.MultiSteps(optax.sgd(0.1), 2)
    tx = jaxcl.transform_optimizer(method, inner, setup)
    state = tx.init(params)
    x = jnp.ones(setup.example.shape)
    ctx = jaxcl.context(x, jnp.zeros(len(x), int), task=0, setup=setup)
    grads, out = jax.grad(jaxcl.transform_loss(method, setup), has_aux=True)(
        params, state.strategy, ctx
    )
    _, state = tx.update(grads, state, params, ctx=ctx, out=out)
    assert state.reached.any()
    data = jaxcl.array_data(x, jnp.zeros(len(x), int), task=0)
    _, kept = jaxcl.after_task(method, params, state, data, task=0)
    _, anew = jaxcl.after_task(method, params, state, data, task=0, optimizer=inner)
    assert kept.reached.any() and not anew.reached.any()


def test_what_a_tasks_end_draws_differs_between_seeds():
    _, setup, method, params, state, _ = parts(
        "task", lambda s: agem(s, per_task=3, batch_size=2)
    )
    x = jax.random.normal(jax.random.key(0), (20, *setup.example.shape[1:]))
    data = jaxcl.array_data(x, jnp.arange(20) % 2, task=0)

    def kept(**given):
        _, ended = jaxcl.after_task(method, params, state, data, task=0, **given)
        return np.asarray(ended.strategy.x[:3])

    np.testing.assert_array_equal(kept(), kept(seed=0))
    assert (kept(seed=1) != kept(seed=0)).any()


def test_agem_takes_one_number_of_examples():
    setup = setup_of(small_problem())
    agem(setup, per_task=100)
    agem(setup)  # 25 per class, as in the paper
    with pytest.raises(ValueError, match="only one of per_class and per_task"):
        agem(setup, per_class=13, per_task=100)


def test_patience_without_a_rate_would_end_each_task_at_once():
    plan = Plan(epochs=50, batch_size=10, patience=5)
    with pytest.raises(ValueError, match="patience=5 needs the optimizer's rate"):
        validate_plan(plan, has_validation=True)
    validate_plan(plan._replace(lr=0.1), has_validation=True)


def test_a_floor_of_the_rate_and_rates_per_seed_exclude_each_other():
    problem = small_problem()
    plan = problem.plan._replace(lr=0.1, lr_floor=0.01, decay_per_task=0.5)
    rates = (1.0,) * len(problem.seeds)
    with pytest.raises(ValueError, match=r"lr_floor=0.01 is a rate"):
        validate(problem._replace(plan=plan, rates=rates))


@pytest.mark.parametrize(
    "plan, task, length",
    [
        (Plan(epochs=10, batch_size=5), 0, 40),
        (Plan(epochs=10, batch_size=5, max_steps=8), 0, 8),
        (Plan(epochs=10, batch_size=5, first_epochs=3), 0, 12),
        (Plan(epochs=10, batch_size=5, first_epochs=3), 1, 40),
        (Plan(epochs=None, batch_size=5, max_steps=7), 1, 7),
    ],
)
def test_a_tasks_length_is_the_shorter_of_epochs_and_steps(plan, task, length):
    assert task_length(plan, jnp.int32(task), jnp.int32(4)) == length


def test_ols_measures_are_of_examples_drawn_at_random():
    """On arrays sorted by class the first ones are of one class."""
    _, setup, method, params, state, _ = parts("task", ol)
    x = jax.random.normal(jax.random.key(0), (600, *setup.example.shape[1:]))
    x = x.at[300:].add(3.0)  # the second class lies elsewhere
    y = jnp.repeat(jnp.arange(2), 300)
    mixed = jax.random.permutation(jax.random.key(1), 600)

    def loss(x, y):
        data = jaxcl.array_data(x, y, task=0)
        _, ended = jaxcl.after_task(method, params, state, data, task=0)
        return np.array(list(ended.strategy.loss.values()))

    np.testing.assert_allclose(loss(x, y), loss(x[mixed], y[mixed]), atol=0.002)
    ones = loss(x[:300], y[:300])  # what was reported before
    assert np.abs(ones - loss(x, y)).max() > 0.005


@pytest.mark.parametrize("m", [None, 1, 40])
def test_owms_projector_is_computed_wide(m):
    """bfloat16: P stays positive semi-definite but for its own rounding."""
    shape = (16,) if m is None else (m, 16)
    x = jax.random.normal(jax.random.key(0), shape)
    eye = jnp.eye(16)
    wide = rls_update(eye, x, 1e-3)
    narrow = rls_update(eye.astype(jnp.bfloat16), x.astype(jnp.bfloat16), 1e-3)
    assert narrow.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
    exact = rls_update(eye, x.astype(jnp.bfloat16).astype(jnp.float32), 1e-3)
    np.testing.assert_array_equal(narrow, exact.astype(jnp.bfloat16))
    for a, b in ((eye, x.astype(jnp.bfloat16)), (eye.astype(jnp.bfloat16), x)):
        assert rls_update(a, b, 1e-3).dtype == a.dtype


def test_the_ends_of_a_line_are_the_weights_themselves():
    a, b = (jnp.array([v], jnp.bfloat16) for v in (1.0, 3.0))
    seen = []

    def loss(tree):
        seen.append(tree["w"].dtype)
        return jnp.sum(tree["w"]).astype(jnp.float32)

    line = features.loss_along_line(loss, {"w": a}, {"w": b}, points=3)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(line, [1.0, 2.0, 3.0])


def test_the_cosine_of_nothing_is_zero():
    empty = {"w": jnp.zeros((0, 3)), "b": jnp.array([1.0])}
    assert float(features.cosine(empty, empty)) == 1.0
    assert float(features.cosine({}, {})) == 0.0


def test_an_unknown_norm_and_a_small_dropout_are_not_left_out():
    with pytest.raises(ValueError, match="kind must be one of none, batch"):
        Norm("grup")
    x = jnp.ones((64, 256))
    rngs = {"dropout": jax.random.key(0)}
    y = Dropout(0.001).apply({}, x, True, rngs=rngs)
    assert 0 < (y == 0).mean() < 0.01
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, True, rngs=rngs), x)


@pytest.mark.parametrize(
    "name, part, size", [("probes", "train", 2), ("cka", "test", 3)]
)
def test_a_task_too_small_to_measure_is_refused_before_training(name, part, size):
    problem = small_problem(**{f"{part}_per_task": size, "valid_fraction": 0.0})
    mesh = SeedMesh(len(problem.seeds), problem.seed_mode)
    said = rf"{name} needs at least \d {part} examples of every task, the smallest has"
    with pytest.raises(ValueError, match=said):
        make_instruments(problem, mesh, names=(name,))
    make_instruments(problem, mesh, names=("rank",))
