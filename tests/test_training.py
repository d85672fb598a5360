"""Patience, selection and schedules of each seed, tested through the protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import strategy
from jaxcl.data.scenarios import make_stream
from jaxcl.training import protocol
from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.protocol import EpochDone, TaskDone
from jaxcl.types import Params


def _epochs(problem):
    return [e for e in protocol.run(problem) if isinstance(e, EpochDone)]


def still(setup):
    """Changes no weight, so that no epoch is better than the first."""
    return strategy(
        updates=lambda u, s, params, **_: (jax.tree.map(jnp.zeros_like, u), s)
    )


def test_patience_decays_the_rate_and_ends_the_task(problem):
    plan = dict(epochs=50, patience=2, lr_factor=10.0, lr=0.1, lr_min=2e-4)
    build = problem(make_strategy=still, plan=plan)
    epochs = [e for e in _epochs(build) if e.task == 0]
    scales = [float(e.metrics.lr_scale[0]) for e in epochs]
    # Epoch 1 sets the best; every 2 stale ones divide: 0.1 → 0.01 → 0.001 → 0.0001.
    np.testing.assert_allclose(scales, [1, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_patience_starts_anew_with_every_task(problem):
    plan = dict(epochs=50, patience=1, lr_factor=10.0, lr=0.1, lr_min=2e-3)
    epochs = _epochs(problem(make_strategy=still, plan=plan))
    for task in range(3):
        scales = [float(e.metrics.lr_scale[0]) for e in epochs if e.task == task]
        np.testing.assert_allclose(scales, [1, 1, 0.1], rtol=1e-6)


def test_a_decayed_rate_scales_the_step(problem):
    """After patience has divided lr by 10, a step is a tenth as long as before."""
    sizes = []

    def measured(setup):
        def updates(updates, state, params, *, grads, ctx, out):
            ratio = optax.global_norm(updates) / optax.global_norm(grads)
            return jax.tree.map(jnp.zeros_like, updates), ratio

        return strategy(init=lambda params: jnp.zeros(()), updates=updates)

    from jaxcl.training.seeds import SeedMesh

    build = problem(
        make_strategy=measured,
        seeds=(0,),
        plan=dict(epochs=4, patience=1, lr_factor=10.0, lr=0.1, lr_min=1e-9),
    )
    mesh = SeedMesh(1)
    programs = make_programs(build, mesh)
    mine, base = mesh.spread(per_seed(build)), mesh.share(build.stream.base)
    task = mesh.share(np.int32(0))
    seed = programs.begin(programs.init((), mine, ()), (mine, mesh.real), ())
    cache = programs.before_task(seed, mine, (base, task))
    for epoch in range(4):
        shared = (base, task, mesh.share(np.int32(epoch)), mesh.share(np.int32(10)))
        seed, _ = programs.epoch(seed, (mine, cache), shared)
        sizes.append(float(seed.strategy_state[0]))
    np.testing.assert_allclose(sizes, [0.1, 0.1, 0.01, 0.001], rtol=1e-5)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_best_weights_are_loaded_always(problem, metric):
    """Not only if patience ran out: a task always ends as good as its best epoch."""

    def worsening(setup):
        """Increases the loss from the third epoch of a task on."""

        def updates(updates, state, params, *, grads, ctx, out):
            sign = jnp.where(ctx.step < 20, 1.0, -3.0)
            return jax.tree.map(lambda u: sign * u, updates), state

        return strategy(updates=updates)

    plan = dict(epochs=5, select="best", select_metric=metric)
    build = problem(make_strategy=worsening, plan=plan)._replace(measure="valid")
    best = {}
    for event in protocol.run(build):
        if isinstance(event, EpochDone):
            m = event.metrics
            score = m.valid_accuracy if metric == "accuracy" else -m.valid_loss
            best.setdefault(event.task, []).append((score, m.valid_accuracy))
        elif isinstance(event, TaskDone):
            t = event.task
            scores = np.stack([s for s, _ in best[t]])
            accuracies = np.stack([a for _, a in best[t]])
            chosen = scores.argmax(0)
            expected = accuracies[chosen, np.arange(3)]
            np.testing.assert_allclose(event.accuracy[:, t, t], expected, atol=1e-6)
            assert (scores[-1] < scores.max(0)).any(), "the last epoch must be worse"


def test_max_steps_ends_inside_an_epoch(problem):
    # 80 examples per task, 10 steps per epoch.
    epochs = _epochs(problem(plan=dict(epochs=None, max_steps=25)))
    for task in range(3):
        steps = [e.metrics.steps.tolist() for e in epochs if e.task == task]
        assert steps == [[10] * 3, [10] * 3, [5] * 3]


def test_epochs_bound_max_steps(problem):
    epochs = _epochs(problem(plan=dict(epochs=2, max_steps=25)))
    assert sum(int(e.metrics.steps[0]) for e in epochs) == 3 * 20


def test_the_first_task_may_have_other_epochs(problem):
    epochs = _epochs(problem(plan=dict(epochs=2, first_epochs=3)))
    assert [e.task for e in epochs] == [0] * 3 + [1] * 2 + [2] * 2


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_first_task_without_epochs_keeps_the_initial_network(problem, select):
    plan = dict(epochs=2, first_epochs=0, select=select)
    events = list(protocol.run(problem("ewc", {"strength": 1.0}, plan=plan)))
    assert [e.task for e in events if isinstance(e, EpochDone)] == [1, 1, 2, 2]
    first, *_, last = [e for e in events if isinstance(e, TaskDone)]
    np.testing.assert_array_equal(first.accuracy[:, 0], first.baseline)
    assert (first.steps == 0).all() and (last.steps == 40).all()


def test_first_epochs_do_not_stand_alone(problem):
    plan = dict(epochs=None, max_steps=5, first_epochs=0)
    with pytest.raises(ValueError, match="first_epochs=0 needs epochs for the other"):
        next(protocol.run(problem(plan=plan)))


@pytest.mark.parametrize("first", [None, 4])
def test_progress_runs_from_zero_to_one(problem, first):
    """(b − 1)/(B − 1) over an epoch's batches; or the share of examples seen."""

    def recorder(setup):
        def init(params):
            return jnp.zeros((40, 3))

        def grads(grads, state, params, *, ctx, out):
            entry = [ctx.epoch_progress, ctx.task_progress, ctx.epoch_fraction]
            entry = jnp.stack(entry)
            return grads, state.at[ctx.step].set(entry)

        return strategy(init=init, grads=grads)

    from jaxcl.training.seeds import SeedMesh

    # 80 examples per task, 12 steps per epoch; the last step has 3 examples.
    plan = dict(epochs=2, first_epochs=first, batch_size=7)
    build = problem(make_strategy=recorder, seeds=(0,), plan=plan)
    mesh = SeedMesh(1)
    programs = make_programs(build, mesh)
    mine, base = mesh.spread(per_seed(build)), mesh.share(build.stream.base)
    task = mesh.share(np.int32(0))
    seed = programs.begin(programs.init((), mine, ()), (mine, mesh.real), ())
    for epoch in range(2):
        shared = (base, task, mesh.share(np.int32(epoch)), mesh.share(np.int32(12)))
        seed, _ = programs.epoch(seed, (mine, ()), shared)
    seen = np.asarray(seed.strategy_state[0])
    steps = np.arange(12)
    np.testing.assert_allclose(seen[:24, 0], np.tile(steps / 11, 2), rtol=1e-6)
    np.testing.assert_allclose(
        seen[:24, 1], np.arange(24) / (12 * (first or 2)), rtol=1e-6
    )
    np.testing.assert_allclose(seen[:24, 2], np.tile(steps * 7 / 80, 2), rtol=1e-6)
    assert isinstance(seed.params, Params)


def test_patience_follows_one_metric_and_selection_another(problem, blobs):
    """Patience by loss, selection of weights by accuracy, recomputed in NumPy."""
    noise = np.random.default_rng(0).normal(0, 120, blobs.train_x.shape)
    hard = np.clip(blobs.train_x + noise, 0, 255).astype(np.uint8)
    options = dict(kind="split", scenario="task", num_tasks=3, valid_fraction=0.2)
    plan = dict(epochs=12, patience=2, lr_factor=2.0, lr=0.3, lr_min=0.02)
    plan |= dict(patience_metric="loss", select="best", select_metric="accuracy")
    build = problem(optimizer=optax.sgd(0.3), plan=plan, seeds=(0, 1, 2, 3))
    stream = make_stream(blobs._replace(train_x=hard), build.seeds, **options)
    build = build._replace(stream=stream, measure="valid", seed_mode="map")
    epochs, apart = {}, 0
    for event in protocol.run(build):
        if isinstance(event, EpochDone):
            epochs.setdefault(event.task, []).append(event.metrics)
        elif isinstance(event, TaskDone):
            task = event.task
            for seed in range(4):
                metrics = [m for m in epochs[task] if m.steps[seed]]
                loss = [float(m.valid_loss[seed]) for m in metrics]
                accuracy = [float(m.valid_accuracy[seed]) for m in metrics]
                scale, best, bad = 1.0, np.inf, 0
                for m, now in zip(metrics, loss, strict=True):
                    assert m.lr_scale[seed] == pytest.approx(scale)
                    bad = 0 if now < best else bad + 1
                    best = min(best, now)
                    if bad == 2:
                        scale, bad = scale / 2, 0
                np.testing.assert_allclose(
                    event.accuracy[seed, task, task], max(accuracy), atol=1e-6
                )
                apart += accuracy[int(np.argmin(loss))] < max(accuracy)
    assert apart, "the two metrics must disagree somewhere"


def test_of_equally_good_epochs_the_first_is_kept(problem):
    """Shifting all outputs by the same amount changes neither accuracy nor loss."""

    def shifting(setup):
        def updates(updates, state, params, *, grads, ctx, out):
            zeros = jax.tree.map(jnp.zeros_like, updates)
            zeros.net["head"]["bias"] += 1.0
            return zeros, state

        def after_task(params, state, *, data, model_state, task, key):
            return params, params.net["head"]["bias"][0]

        def init(params):
            return jnp.zeros(())

        return strategy(
            init=init,
            updates=updates,
            after_task=after_task,
            report=lambda state: {"bias": {"head": state}},
        )

    plan = dict(epochs=3, select="best", select_metric="accuracy")
    *_, last = protocol.run(problem(make_strategy=shifting, plan=plan))
    # 10 steps per epoch; the bias starts within ±1/4.
    np.testing.assert_allclose(last.report["bias"]["head"][:, 0], 10, atol=0.3)
