"""Features measured in a run: their values, their cost, and their files on resuming."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from threadpoolctl import threadpool_limits

import jaxcl
from configs import digits
from experiments.runs import measured
from experiments.runs.execute import Job, Part, carry_out, execute, prepare
from jaxcl import features
from jaxcl.data.scenarios import make_stream
from jaxcl.data.source import Source
from jaxcl.nn import models
from jaxcl.ops.sampling import shuffled
from jaxcl.strategies import make
from jaxcl.training import protocol
from jaxcl.training.instruments import make_instruments
from jaxcl.training.observation import by_unit, taps_of
from jaxcl.training.plan import Plan
from jaxcl.training.problem import Problem, setup_of
from jaxcl.training.protocol import EpochDone
from jaxcl.training.seeds import SeedMesh

ROOT = Path(__file__).parent.parent
FIELDS = {
    "seeds": (3, 5, 8),
    "data.num_tasks": 3,
    "data.train_per_task": 80,
    "data.test_per_task": 60,
    "model.widths": (12, 9),
    "train.epochs": 2,
    "keep_weights": "epochs",
    "features": "rank, probes, cka, drift, conflict",
    "feature_examples": 50,
}
FIRST = (0, 4, 7, 10)  # ten classes in three tasks: 4, 3 and 3
RANKS = ("effective_rank", "stable_rank", "energy_rank", "dormant_share")


def config_of(row="gpm", **fields):
    config = digits.get_config(row)
    config.update_from_flattened_dict(FIELDS | fields)
    return config


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("recorded")
    execute(config_of(), workdir)
    return jaxcl.load_run(workdir)


def examples(run, seed, task, part):
    """The same examples as a run measures, in the same order."""
    stream = run.problem.stream
    offset = np.asarray(getattr(stream.per_seed, part).offset)
    size = np.diff(offset[run.seeds.index(seed)])[task]
    order = shuffled(jax.random.key(0), jnp.asarray(size), stream.capacity(part))
    x, y = run.data(seed, task, part)
    kept = np.asarray(order[: min(50, np.diff(offset, axis=1).min())])
    return x[kept], y[kept] - FIRST[task]


def seen(run, seed, after, task, part="test", epoch=None):
    """Features of both layers and classes, from the kept weights."""
    x, y = examples(run, seed, task, part)
    weights = run.weights(seed, after, epoch)
    taps = run.apply(weights, x, task, current=max(after, 0)).taps
    return {"hidden_0": taps["hidden_1"], "hidden_1": taps["head"]}, y


def cells(tasks=3):
    """Which tasks are measured when: all at both ends, else up to the next one."""
    for trained in range(tasks + 1):
        count = tasks if trained in (0, tasks) else trained + 1
        for task in range(tasks):
            yield trained, task, task < count


def test_ranks_and_probes_are_those_of_the_kept_weights(opened):
    for k, seed in enumerate(opened.seeds):
        for trained, task, wanted in cells():
            test, y = seen(opened, seed, trained - 1, task)
            train, train_y = seen(opened, seed, trained - 1, task, "train")
            fit = round(0.8 * len(train_y))
            for layer, x in test.items():
                got = {
                    q: opened.measured[f"{q}/{layer}"][k, trained, task]
                    for q in (*RANKS, "probe_ridge", "probe_ncm")
                }
                if not wanted:
                    assert np.isnan(list(got.values())).all()
                    continue
                given = train[layer]
                ridge = features.ridge_probe(
                    *(given[:fit], train_y[:fit], given[fit:], train_y[fit:]),
                    num_classes=4,
                )
                ncm = features.ncm(given, train_y, num_classes=4)
                expected = {
                    "probe_ridge": features.accuracy(ridge, x, y),
                    "probe_ncm": features.accuracy(ncm, x, y),
                    **{q: getattr(features, q)(x) for q in RANKS},
                }
                for quantity, value in expected.items():
                    np.testing.assert_allclose(got[quantity], value, 1e-4, 1e-6)


def test_a_run_gives_the_features_that_it_measured(opened):
    """Under the same names: a layer's output, which is another layer's tap."""
    ranks = measured.layers_of(opened.measured, "effective_rank")
    for trained, task, wanted in cells():
        weights = opened.weights(5, trained - 1)
        found = opened.features(weights, 5, task)
        assert wanted is False or found.keys() == ranks.keys()
        for layer, x in found.items() if wanted else ():
            rank = features.effective_rank(x)
            np.testing.assert_allclose(rank, ranks[layer][1, trained, task], 1e-4)
    x, y = opened.data(5, task, measured=True)
    mine = examples(opened, 5, task, "test")
    np.testing.assert_array_equal(x, mine[0])
    np.testing.assert_array_equal(y - FIRST[task], mine[1])
    assert len(opened.features(weights, 5, 0, "valid")["hidden_1"]) <= 50
    with pytest.raises(ValueError, match="of seed 5, asked for is seed 3"):
        opened.features(weights, 3, 0)


def test_the_rank_of_every_epoch(opened):
    for k, seed in enumerate(opened.seeds):
        for task in range(3):
            for epoch in range(2):
                x, _ = seen(opened, seed, task, task, epoch=epoch)
                for layer in x:
                    name = f"effective_rank_by_epoch/{layer}"
                    got = opened.measured[name][k, task, epoch]
                    want = features.effective_rank(x[layer])
                    np.testing.assert_allclose(got, want, 1e-4)


def test_similarity_and_drift_of_the_first_tasks_examples(opened):
    for k, seed in enumerate(opened.seeds):
        over = [seen(opened, seed, trained - 1, 0)[0] for trained in range(4)]
        for layer in over[0]:
            cka = opened.measured[f"cka/{layer}"][k]
            drift = opened.measured[f"feature_drift/{layer}"][k]
            assert np.isnan(drift[0])
            for i, now in enumerate(over):
                if i:
                    want = features.feature_drift(over[1][layer], now[layer])
                    np.testing.assert_allclose(drift[i], want, 1e-4, 1e-6)
                for j, then in enumerate(over):
                    want = features.linear_cka(now[layer], then[layer], debiased=True)
                    np.testing.assert_allclose(cka[i, j], want, 1e-4)
        nets = [opened.weights(seed, task).params.net for task in range(3)]
        for layer in ("hidden_0", "hidden_1", "head"):
            flat = [
                np.concatenate([np.float64(v).ravel() for v in net[layer].values()])
                for net in nets
            ]
            moved = [
                np.linalg.norm(v - flat[0]) / np.linalg.norm(flat[0]) for v in flat
            ]
            got = opened.measured[f"weight_drift/{layer}"][k]
            np.testing.assert_allclose(got, [np.nan, *moved], 1e-4, 1e-6)


def cosine_of(a, b):
    a, b = (
        np.concatenate([np.float64(v).ravel() for v in jax.tree.leaves(t)])
        for t in (a, b)
    )
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def gradient_of(run, seed, after, task, epoch=None):
    """Gradient of the loss over a task's own classes, in the shared weights."""
    weights = run.weights(seed, after, epoch)
    x, y = examples(run, seed, task, "train")

    def loss(net):
        hidden = weights._replace(params=weights.params._replace(net=net))
        out = run.apply(hidden, x, task)
        logits = out.logits[:, FIRST[task] : FIRST[task + 1]]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    found = jax.grad(loss)(weights.params.net)
    return {layer: found[layer] for layer in ("hidden_0", "hidden_1")}


def test_conflict_is_of_the_gradients_at_the_kept_weights(opened):
    for k, seed in enumerate(opened.seeds):
        for task in (1, 2):
            for when, at in (("start", (task - 1, None)), ("first epoch", (task, 0))):
                new = gradient_of(opened, seed, at[0], task, at[1])
                row = opened.measured[f"conflict_gradient/{when}"][k, task]
                assert np.isnan(row[task:]).all()
                for old in range(task):
                    g = gradient_of(opened, seed, at[0], old, at[1])
                    np.testing.assert_allclose(row[old], cosine_of(new, g), 1e-2, 1e-4)


def test_a_projection_takes_the_conflict_out_of_the_step(opened, tmp_path):
    gradient = np.abs(opened.measured["conflict_gradient/first epoch"])
    step = np.abs(opened.measured["conflict_step/first epoch"])
    assert np.nanmean(step) < np.nanmean(gradient) / 3
    # Without a constraint the step is along the gradient.
    execute(config_of("bp", features="conflict", keep_weights="none"), tmp_path)
    found = measured.load(tmp_path)
    for when in ("start", "first epoch"):
        a, b = (found[f"conflict_{what}/{when}"] for what in ("gradient", "step"))
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)
    assert not any("rank" in name or "cka" in name for name in found)
    assert not (tmp_path / "features").exists()


def test_records_name_every_place(opened):
    records = opened.records()
    rank = [r for r in records if r["quantity"] == "effective_rank"]
    assert len(rank) == 3 * 2 * sum(wanted for *_, wanted in cells())
    one = next(r for r in rank if r["tasks_trained"] == 3 and r["task"] == 1)
    values = opened.measured[f"effective_rank/{one['layer']}"]
    assert one["value"] == values[opened.seeds.index(one["seed"]), 3, 1]
    assert {"task", "epoch"} <= next(
        r for r in records if r["quantity"] == "effective_rank_by_epoch"
    ).keys()
    assert not [r for r in records if r["quantity"] == "seconds"]


@pytest.mark.parametrize("seed_mode", ["map", "vmap"])
def test_one_compilation_serves_all_tasks_and_seeds(tmp_path, monkeypatch, seed_mode):
    meshes = []

    class Seen(SeedMesh):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            meshes.append(self)

    monkeypatch.setattr("experiments.runs.execute.SeedMesh", Seen)
    execute(config_of("ewc", seed_mode=seed_mode), tmp_path)
    traces = meshes[0].traces
    assert {"features", "feature_ranks", "first_features", "conflict"} < traces.keys()
    assert set(traces.values()) == {1}, traces


COMMAND = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
from pathlib import Path
from tests.test_recording import config_of
from experiments.runs.execute import execute
fields = {"checkpoint_every": 0.0, "keep_weights": "none", "seeds": (3, 5)}
execute(config_of("bp", **fields), Path(sys.argv[1]))
"""


@pytest.mark.minutes
def test_what_a_run_measured_is_the_same_killed_and_resumed(tmp_path):
    def start(workdir):
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(workdir)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait(timeout=900) == 0
    for reached in ("after_001.npz", "after_002.npz"):
        process = start(broken)
        deadline = time.monotonic() + 900
        while not (broken / "features" / reached).exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (broken / "features" / "after_003.npz").exists()
    assert start(broken).wait(timeout=900) == 0
    a, b = measured.load(whole), measured.load(broken)
    assert a.keys() == b.keys()
    for name in a.keys() - {measured.SECONDS}:
        np.testing.assert_array_equal(a[name], b[name], name)
    assert all(np.isfinite(a[f"{q}/hidden_0"][:, -1]).all() for q in RANKS)


def test_parts_of_a_run_are_measured_as_runs_of_their_own(tmp_path):
    """Settings of a sweep that are trained together, each with a folder of its own."""
    configs = [config_of("bp", **{"optimizer.lr": lr}) for lr in (0.05, 0.1)]
    job = prepare(configs[0], tmp_path / "0")
    problem = job.problem._replace(
        seeds=job.problem.seeds * 2,
        stream=job.problem.stream._replace(
            per_seed=jax.tree.map(
                lambda leaf: np.concatenate([leaf, leaf]), job.problem.stream.per_seed
            )
        ),
        rates=(1.0,) * 3 + (2.0,) * 3,
    )
    parts = tuple(Part(c, tmp_path / str(i)) for i, c in enumerate(configs))
    carry_out(Job(problem, parts, tmp_path / "checkpoints"))
    for i, config in enumerate(configs):
        execute(config, tmp_path / f"alone{i}")
        together = measured.load(tmp_path / str(i))
        alone = measured.load(tmp_path / f"alone{i}")
        assert together.keys() == alone.keys()
        for name in alone.keys() - {measured.SECONDS}:
            np.testing.assert_allclose(together[name], alone[name], 1e-3, 1e-4)


def test_a_seed_that_fails_is_not_measured(tmp_path, monkeypatch):
    """Its features mean nothing; the other seeds are measured as usual."""
    execute(config_of("bp", keep_weights="none"), tmp_path / "healthy")
    job = prepare(config_of("bp", keep_weights="none"), tmp_path / "ill")
    rates = (1.0, 1e30, 1.0)
    carry_out(job._replace(problem=job.problem._replace(rates=rates)))
    healthy, ill = (measured.load(tmp_path / which) for which in ("healthy", "ill"))
    for name in healthy.keys() - {measured.SECONDS}:
        a, b = healthy[name], ill[name]
        np.testing.assert_allclose(a[[0, 2]], b[[0, 2]], 1e-5, 1e-6)
        if "conflict" not in name and "epoch" not in name:
            assert np.isnan(b[1, 1:]).all() or "weight" in name, name


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"features": "rank, rang"}, "rank, probes, .*; not rang"),
        ({"feature_layers": "hidden_7"}, "hidden_7 .* features of: hidden_0, hidden_1"),
        ({"feature_examples": 3}, "at least 10, got 3"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(
    tmp_path, fields, told
):
    with pytest.raises(ValueError, match=told):
        execute(config_of(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_named_layers_are_measured(tmp_path):
    execute(config_of("bp", features="rank", feature_layers="hidden_1"), tmp_path)
    names = measured.load(tmp_path)
    assert {n.partition("/")[2] for n in names if "/" in n} == {"hidden_1"}


def test_features_of_a_convolutional_network_are_found():
    stream = make_stream(
        Source(
            "images",
            *(np.zeros((40, 32, 32, 3), np.uint8), np.arange(40, dtype=np.int32) % 4),
            *(np.zeros((8, 32, 32, 3), np.uint8), np.arange(8, dtype=np.int32) % 4),
            *(tuple("abcd"), 255, (0.5,) * 3, (0.5,) * 3),
        ),
        (0,),
        kind="split",
        scenario="task",
        num_tasks=2,
    )
    problem = Problem(
        model=models.AlexNet(stream.num_outputs, width=0.1),
        stream=stream,
        seeds=(0,),
        make_strategy=lambda setup: make("finetune", setup, {}),
        optimizer=optax.sgd(0.1),
        plan=Plan(epochs=1, batch_size=4),
    )
    assert taps_of(setup_of(problem)) == {
        "conv_0": "conv_1",
        "conv_1": "conv_2",
        "conv_2": "dense_0",
        "dense_0": "dense_1",
        "dense_1": "head",
    }
    # A convolution's unit is a channel, also where the next layer reads it flattened.
    maps = np.zeros((6, 2, 2, 26), np.float32)
    maps[:, 0, 1, :20] = 1.0
    units = by_unit(setup_of(problem), "dense_0", jnp.asarray(maps.reshape(6, -1)))
    assert features.dormant_share(units) == features.dormant_share(maps)
    assert round(26 * float(features.dormant_share(maps))) == 6


def test_units_of_channels_that_come_first_are_channels():
    """An Equinox network: images are [C, H, W], and flattened so."""

    def net(key):
        a, b, c = jax.random.split(key, 3)
        return eqx.nn.Sequential(
            [
                *(eqx.nn.Conv2d(1, 4, 3, key=a), eqx.nn.Lambda(jax.nn.relu)),
                *(eqx.nn.Conv2d(4, 8, 3, key=b), eqx.nn.Lambda(jax.nn.relu)),
                *(eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(8 * 16, 2, key=c)),
            ]
        )

    whole = net(jax.random.key(0))
    setup = jaxcl.setup_for_equinox(
        whole,
        jnp.zeros((5, 1, 8, 8)),
        num_outputs=2,
        num_tasks=1,
        heads=(("layers", "5"),),
    )
    first, second = taps_of(setup).values()
    maps = np.zeros((5, 8, 4, 4), np.float32)
    maps[:, :6, 1] = 1.0  # two of eight channels are dormant
    flat = by_unit(setup, second, jnp.asarray(maps.reshape(5, -1)))
    assert features.dormant_share(flat) == 0.25
    assert features.dormant_share(by_unit(setup, first, jnp.asarray(maps))) == 0.25


@pytest.mark.minutes
def test_measuring_costs_little_of_a_run():
    """Rank, CKA and probes after each task take under 5 % of permuted MNIST with GPM.

    A twentieth of an epoch is timed, in processor time, which other programs do not
    change. The 5 % are of a run with five epochs per task, without compilation.
    """
    rng = np.random.default_rng(0)
    n, test, tasks = 3000, 1000, 10
    y = (np.arange(n) % 10).astype(np.int32)
    images = rng.integers(0, 256, (n, 28, 28, 1), np.uint8)
    names = tuple(map(str, range(10)))
    data = (images, y, images[:test], y[:test], names, 255, (0.5,), (0.25,))
    stream = make_stream(
        Source("random", *data),
        (0, 1),
        kind="permuted",
        scenario="domain",
        num_tasks=tasks,
    )
    problem = Problem(
        model=models.MLP((100, 100), stream.num_outputs, use_bias=False),
        stream=stream,
        seeds=(0, 1),
        make_strategy=lambda s: make("gpm", s, {"threshold": 0.95, "samples": 300}),
        optimizer=optax.sgd(0.01),
        plan=Plan(epochs=3, batch_size=10),
    )
    mesh = SeedMesh(2)
    use = make_instruments(
        problem, mesh, names=("rank", "probes", "cka"), examples=1000
    )
    spent, measuring, moments = [], [], []

    def number(value):
        return mesh.share(np.int32(value))

    def measure(moment):
        with threadpool_limits(1, "blas"):
            began = time.process_time()
            shared = (moment.base, number(8), number(0))
            mesh.gather(use.measure(moment.trained, moment.mine, shared))
            now = use.first(moment.trained, moment.mine, (moment.base, number(0)))
            then = mesh.gather(now)
            for _ in range(6):
                mesh.gather(use.compare(now, mesh.spread(then), ()))
            return time.process_time() - began

    def watch(moment):
        moments.append(moment.what)
        if moment.what == "epoch":
            spent.append(time.process_time())
            measuring.append(measure(moment))

    for event in protocol.run(problem, mesh=mesh, watch=[watch]):
        if isinstance(event, EpochDone) and len(spent) == 3:
            break
    epoch = (spent[2] - spent[1] - measuring[1]) * 54_000 / n
    share = min(measuring[1:]) / (5 * epoch)
    print(f"one epoch {epoch:.2f} s, measuring {min(measuring[1:]):.2f} s: {share:.1%}")
    assert share <= 0.05
