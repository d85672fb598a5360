"""Tasks × seeds: devices, traces, resuming, several processes, failing seeds."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import metrics, strategy
from jaxcl.strategies import make
from jaxcl.training import protocol
from jaxcl.training.checkpoints import CheckpointError
from jaxcl.training.problem import validate
from jaxcl.training.programs import can_trace
from jaxcl.training.protocol import EpochDone, Interrupted, Started, TaskDone
from jaxcl.training.run_state import fresh, packed, unpacked, with_task
from jaxcl.training.seeds import SeedMesh
from jaxcl.types import Params

pytestmark = pytest.mark.usefixtures("shared_programs")


def test_learns_and_reports_every_epoch_and_task(problem):
    events = list(protocol.run(problem(plan=dict(epochs=3))))
    assert isinstance(events[0], Started) and not events[0].resumed
    assert [e.epoch for e in events if isinstance(e, EpochDone)] == [0, 1, 2] * 3
    last = events[-1]
    assert last.status == ("ok",) * 3
    # Two classes per task, far apart: the task just learned is nearly perfect.
    diagonal = np.diagonal(last.accuracy, axis1=1, axis2=2)
    assert diagonal.min() >= 0.95
    # 100 examples per task, 80 for training, batches of 8, 3 epochs, 3 tasks.
    assert last.steps.tolist() == [90] * 3


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
@pytest.mark.parametrize("joint", [False, True])
def test_one_trace_serves_all_tasks_and_seeds(problem, seed_mode, joint):
    where = SeedMesh(3, seed_mode)
    list(protocol.run(problem("ewc", {"strength": 1.0}, joint=joint), mesh=where))
    assert set(where.traces.values()) == {1}
    assert where.traces["epoch"] == 1 and where.traces["end"] == 1


@pytest.mark.usefixtures("newer_emitters")
def test_a_seed_alone_is_bit_equal_to_itself_among_five(problem, finish):
    many = finish(
        problem("ewc", {"strength": 5.0}, seeds=(0, 1, 2, 3, 4), seed_mode="map")
    )
    for k in (0, 3):
        one = finish(problem("ewc", {"strength": 5.0}, seeds=(k,), seed_mode="map"))
        np.testing.assert_array_equal(one.accuracy[0], many.accuracy[k])
        np.testing.assert_array_equal(one.baseline[0], many.baseline[k])


def _trail(problem, **options) -> np.ndarray:
    """Validation losses of every epoch [E, S]: any changed bit of a weight shows."""
    return np.stack(
        [
            event.metrics.valid_loss
            for event in protocol.run(problem, **options)
            if isinstance(event, EpochDone)
        ]
    )


@pytest.mark.usefixtures("newer_emitters")
@pytest.mark.parametrize(
    "seed_mode,tolerance,eval_batch_size",
    [("map", 0.0, 256), ("map", 0.0, 7), ("vmap", 1e-5, 256)],
)
def test_seeds_do_not_touch_each_other(problem, seed_mode, tolerance, eval_batch_size):
    plan = dict(eval_batch_size=eval_batch_size)

    def run(seeds):
        options = dict(seeds=seeds, seed_mode=seed_mode, plan=plan)
        return _trail(problem("ewc", {"strength": 5.0}, **options))

    many, one = run((0, 1, 2)), run((2,))
    np.testing.assert_allclose(many[:, 2], one[:, 0], rtol=0, atol=tolerance)


def test_map_and_vmap_agree(problem):
    a, b = (_trail(problem(seed_mode=seed_mode)) for seed_mode in ("map", "vmap"))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("stop_after", [1, 4])
def test_resuming_is_bit_for_bit(problem, tmp_path, finish, stop_after):
    """Interrupted inside a task and at its end."""

    def build():
        return problem(
            "ewc",
            {"strength": 5.0},
            optimizer=optax.sgd(0.1, momentum=0.9),
            plan=dict(select="best", patience=1, lr=0.1, lr_min=1e-9),
        )

    whole = _trail(build())
    epochs = 0
    with pytest.raises(Interrupted):

        def stop():
            return epochs >= stop_after

        for event in protocol.run(
            build(), checkpoints=tmp_path / "parts", stop=stop, save_every=1e9
        ):
            epochs += isinstance(event, EpochDone)
    started, *events = protocol.run(build(), checkpoints=tmp_path / "parts")
    assert started.resumed
    rest = [e.metrics.valid_loss for e in events if isinstance(e, EpochDone)]
    np.testing.assert_array_equal(rest, whole[stop_after:])
    last = events[-1]
    expected = finish(build())
    np.testing.assert_array_equal(last.accuracy, expected.accuracy)
    np.testing.assert_array_equal(last.baseline, expected.baseline)
    assert last.steps.tolist() == expected.steps.tolist()


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_large_matrix_is_not_saved_after_each_task(
    problem, tmp_path, finish, monkeypatch, tasks
):
    """It ends bit for bit the same from an earlier task's state, and after a stop."""

    def build():
        return problem("ewc", {"strength": 5.0}, optimizer=optax.sgd(0.1, momentum=0.9))

    def ends(folder):
        return sorted(int(path.name) for path in folder.glob("[0-9]*"))

    expected = finish(build()).accuracy
    monkeypatch.setattr(protocol, "MATRIX", expected.nbytes // 2)
    killed, stopped = tmp_path / "killed", tmp_path / "stopped"
    events, done = protocol.run(build(), checkpoints=killed), 0
    while done < tasks:
        done += isinstance(next(events), TaskDone)
    assert ends(killed) == [1_000_000]  # of three tasks the first and the last
    events.close()
    started, *_, last = protocol.run(build(), checkpoints=killed)
    assert started.task == 1 and ends(killed) == [1_000_000, 3_000_000]
    np.testing.assert_array_equal(last.accuracy, expected)
    seen: list[TaskDone] = []
    with pytest.raises(Interrupted):
        for event in protocol.run(
            build(), checkpoints=stopped, stop=lambda: len(seen) >= tasks
        ):
            if isinstance(event, TaskDone):
                seen.append(event)
    assert max(ends(stopped)) == tasks * 1_000_000
    started, *_, last = protocol.run(build(), checkpoints=stopped)
    assert started.task == tasks
    np.testing.assert_array_equal(last.accuracy, expected)


@pytest.mark.usefixtures("newer_emitters")
def test_resumes_on_another_number_of_devices(problem, tmp_path, finish):
    def build():
        return problem("ewc", {"strength": 5.0})

    events = protocol.run(
        build(), checkpoints=tmp_path, mesh=SeedMesh(3, devices=jax.devices()[:1])
    )
    for event in events:
        if isinstance(event, TaskDone):
            break
    events.close()
    *_, last = protocol.run(build(), checkpoints=tmp_path)
    np.testing.assert_array_equal(last.accuracy, finish(build()).accuracy)


def test_a_finished_run_only_reports(problem, tmp_path):
    *_, first = protocol.run(problem(), checkpoints=tmp_path)
    events = list(protocol.run(problem(), checkpoints=tmp_path))
    assert [type(e) for e in events] == [Started, TaskDone]
    np.testing.assert_array_equal(events[-1].accuracy, first.accuracy)


def poison_one_seed(setup):
    """Fine-tuning whose gradients become NaN in task 2 for seeds with a low bias."""

    def init(params):
        return params.net["head"]["bias"][0]

    def grads(grads, state, params, *, ctx, out):
        ill = (state < POISON) & (ctx.task == 1) & (ctx.step > 3)
        net = jax.tree.map(lambda g: jnp.where(ill, jnp.nan, g), grads.net)
        return Params(net, grads.aux), state

    return strategy(init=init, grads=grads)


POISON = -0.05


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
def test_a_diverged_seed_is_reported_and_harms_no_other(problem, finish, seed_mode):
    seeds = (0, 1, 2, 3, 4)
    healthy = finish(problem(seeds=seeds, seed_mode=seed_mode))
    ill = finish(
        problem(seeds=seeds, seed_mode=seed_mode, make_strategy=poison_one_seed)
    )
    failed = [i for i, s in enumerate(ill.status) if s != "ok"]
    assert failed and len(failed) < 5, "the threshold must hit some seeds, not all"
    for i in range(5):
        if i in failed:
            assert ill.status[i] == "failed: task 2, epoch 1"
            np.testing.assert_array_equal(ill.accuracy[i, 0], healthy.accuracy[i, 0])
            assert np.isnan(ill.accuracy[i, 1:]).all()
        else:
            np.testing.assert_allclose(ill.accuracy[i], healthy.accuracy[i], atol=1e-6)


def test_a_checkpoint_of_another_shape_is_refused(problem, tmp_path):
    from jaxcl.nn import models

    list(protocol.run(problem(), checkpoints=tmp_path))
    wider = problem(model=lambda k: models.MLP((17,), k))
    with pytest.raises(CheckpointError):
        list(protocol.run(wider, checkpoints=tmp_path))


def test_an_unwritable_folder_is_named(problem, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
        list(protocol.run(problem(), checkpoints=file / "below"))


def test_contradictions_are_refused_before_anything_runs(problem):
    for kwargs, what in (
        (dict(plan=dict(select="best"), valid_fraction=0.0), "needs validation"),
        (dict(plan=dict(epochs=None)), "epochs or max_steps"),
        (dict(plan=dict(select="newest")), "'newest'"),
        (dict(plan=dict(batch_size=0)), "batch_size must be at least 1, got 0"),
        (dict(seed_mode="sideways"), "'sideways'"),
        (dict(settings={"strength": 1.0}), "strength"),
        (dict(strategy="nosuch"), "unknown strategy 'nosuch'"),
        (dict(seeds=(1, 1)), "distinct"),
    ):
        with pytest.raises(ValueError, match=what):
            next(protocol.run(problem(**kwargs)))


def test_settings_and_rates_as_seeds_equal_runs_of_their_own(problem, finish, blobs):
    def at(strength):
        return lambda setup, **varied: make(
            "ewc", setup, {"strength": strength, "online": True} | varied
        )

    def run(strength, lr, **options):
        optimizer = optax.sgd(lr)
        return finish(
            problem(make_strategy=at(strength), optimizer=optimizer, **options)
        ).accuracy

    build = problem(make_strategy=at(1.0), seeds=(0, 1) * 3)
    mesh = SeedMesh(6)
    together = build._replace(
        settings={"strength": (1.0,) * 2 + (50.0,) * 4}, rates=(1.0,) * 4 + (0.5,) * 2
    )
    assert can_trace(together)
    *_, last = protocol.run(together, mesh=mesh)
    assert set(mesh.traces.values()) == {1}
    alone = [run(1.0, 0.1, seeds=(0, 1)), run(50.0, 0.1, seeds=(0, 1))]
    alone.append(run(50.0, 0.05, seeds=(0, 1)))
    np.testing.assert_allclose(last.accuracy, np.concatenate(alone), atol=1e-5)
    assert not np.array_equal(alone[0], alone[1])
    assert not np.array_equal(alone[1], alone[2])


def test_what_decides_a_shape_cannot_be_traced(problem):
    build = problem("gpm", {"samples": 20})
    build = build._replace(
        make_strategy=lambda setup, **varied: make("gpm", setup, varied),
        settings={"threshold": (0.9, 0.95, 0.9)},
    )
    assert not can_trace(build)


def read_by_numpy(setup, *, strength):
    assert np.asarray(strength) > 0
    return strategy()


def test_what_numpy_reads_cannot_be_traced(problem):
    name = f"{__name__}:read_by_numpy"
    build = problem(make_strategy=lambda setup, **varied: make(name, setup, varied))
    assert not can_trace(build._replace(settings={"strength": (1.0, 2.0, 3.0)}))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"rates": (1.0, 2.0)}, "rates has 2 values for 3 seeds"),
        ({"settings": {"strength": (1.0,) * 4}}, "strength has 4 values for 3 seeds"),
        ({"settings": {"strength": (1.0, -2.0, 1.0)}}, "at least 0, got -2.0"),
        ({"seeds": (0, 0, 1), "rates": (1.0, 1.0, 1.0)}, "seeds must be distinct"),
    ],
)
def test_seeds_that_cannot_be(problem, fields, what):
    build = problem(make_strategy=lambda s, **varied: make("si", s, varied))
    start = {"settings": {"strength": (1.0,) * 3}}
    with pytest.raises(ValueError, match=what):
        validate(build._replace(**(start | fields)))


def test_joint_trains_on_all_data_so_far(problem, finish):
    alone, joint = finish(problem()), finish(problem(joint=True))
    assert joint.steps.tolist() == [2 * (10 + 20 + 30)] * 3
    assert joint.accuracy[:, -1].mean() >= alone.accuracy[:, -1].mean()


def test_joint_once_is_one_training_on_all_tasks(problem, finish, tmp_path):
    once = problem(joint=True)._replace(joint_once=True)
    events = list(protocol.run(once, checkpoints=tmp_path))
    assert events[0][:3] == (2, 0, False)
    assert [e.task for e in events if isinstance(e, EpochDone)] == [2, 2]
    last = events[-1]
    assert last.steps.tolist() == [2 * 30] * 3
    assert np.isnan(last.accuracy[:, :-1]).all()
    assert last.accuracy[:, -1].min() > 0.5
    again = finish(once, checkpoints=tmp_path)
    np.testing.assert_array_equal(again.accuracy, last.accuracy)
    with pytest.raises(ValueError, match="joint_once=True needs joint=True"):
        validate(once._replace(joint=False))


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_tasks_to_come_need_not_be_measured(
    problem, finish, tmp_path, seed_mode, scenario
):
    """Those so far and the next are the same numbers; the others are not measured."""
    build = problem(num_tasks=3, scenario=scenario, seed_mode=seed_mode)
    whole, some = finish(build), build._replace(measure_tasks="seen")
    events = protocol.run(some, checkpoints=tmp_path)
    for event in events:
        if isinstance(event, TaskDone):
            break
    events.close()
    seen = finish(some, checkpoints=tmp_path)
    known = ~np.isnan(seen.accuracy)
    wanted = np.tril(np.ones((3, 3), bool), 1)
    np.testing.assert_array_equal(known, np.broadcast_to(wanted, known.shape))
    np.testing.assert_array_equal(seen.accuracy[known], whole.accuracy[known])
    np.testing.assert_array_equal(seen.baseline, whole.baseline)
    assert seen.status == ("ok",) * 3
    for measure in (metrics.average_accuracy, metrics.backward_transfer):
        np.testing.assert_array_equal(measure(seen.accuracy), measure(whole.accuracy))
    np.testing.assert_array_equal(
        metrics.forward_transfer(seen.accuracy, seen.baseline),
        metrics.forward_transfer(whole.accuracy, whole.baseline),
    )
    with pytest.raises(ValueError, match="measure_tasks must be one of all, seen"):
        validate(build._replace(measure_tasks="some"))


def test_tasks_of_unequal_size_share_a_trace(problem, blobs):
    few = blobs._replace(
        train_x=np.concatenate([blobs.train_x[:60], blobs.train_x[blobs.train_y < 2]]),
        train_y=np.concatenate([blobs.train_y[:60], blobs.train_y[blobs.train_y < 2]]),
    )
    from jaxcl.data.scenarios import make_stream

    stream = make_stream(
        few, (0,), kind="split", scenario="task", num_tasks=3, valid_fraction=0.2
    )
    where = SeedMesh(1)
    build = problem(seeds=(0,))._replace(stream=stream)
    *_, last = protocol.run(build, mesh=where)
    # 96 and 16 training examples, batches of 8, two epochs.
    assert last.steps.tolist() == [2 * (12 + 2 + 2)]
    assert where.traces["epoch"] == 1


WORKER = """
import sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jaxcl.strategies import make
from jaxcl.testing import small_problem
from jaxcl.training import protocol
problem = small_problem(lambda setup: make("ewc", setup, {"strength": 5.0}))
*_, last = protocol.run(problem, checkpoints=sys.argv[3])
np.save(sys.argv[4] + sys.argv[2], last.accuracy)
"""


def test_two_processes_give_the_matrix_of_one(problem, tmp_path, finish):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    arguments = [str(tmp_path / "ck"), str(tmp_path / "a")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i), *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors[-2000:]
    expected = finish(problem("ewc", {"strength": 5.0})).accuracy
    for i in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"a{i}.npy"), expected)


def test_a_stored_matrix_is_read_as_it_was(problem):
    state = fresh(problem(), {})
    measured = np.random.default_rng(0).random(state.baseline.shape, np.float32)
    state = with_task(state, 0, measured, {})
    stored = packed(state)
    assert stored.accuracy.shape[1] == 3
    assert not stored.accuracy[:, 2].any()  # equal rows of NaN, which take no room
    back = unpacked(stored).accuracy
    assert np.array_equal(back.view(np.uint32), state.accuracy.view(np.uint32))
