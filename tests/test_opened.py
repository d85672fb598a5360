"""Kept weights, and a run that is opened again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import jaxcl
from configs import digits
from experiments.runs import arrays, kept
from experiments.runs.execute import execute
from experiments.runs.machine import UsageError
from jaxcl.data.cache import DataError
from jaxcl.training.protocol import Interrupted

pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = Path(__file__).parent.parent
FIELDS = {
    "seeds": (3, 5, 8),
    "data.num_tasks": 3,
    "data.train_per_task": 80,
    "train.epochs": 2,
}


def config_of(row="bp", **fields):
    config = digits.get_config(row)
    config.update_from_flattened_dict(FIELDS | fields)
    return config


@pytest.fixture(scope="session")
def hat_run(tmp_path_factory):
    """A run of HAT, whose forward pass needs the aux, with weights of every epoch."""
    workdir = tmp_path_factory.mktemp("hat")
    config = config_of("hat", keep_weights="epochs")
    return workdir, execute(config, workdir)


def test_which_weights_are_kept(tmp_path, hat_run):
    ends = {"task_000.npz", "task_001.npz", "task_002.npz"}
    epochs = {f"task_{t:03d}_epoch_{e:03d}.npz" for t in range(3) for e in range(2)}
    workdir, _ = hat_run
    assert set(os.listdir(workdir / "weights")) == {"untrained.npz"} | ends | epochs
    for keep, files in (
        ("none", set()),
        ("last", {"task_002.npz"}),
        ("tasks", {"untrained.npz"} | ends),
    ):
        execute(config_of(keep_weights=keep), tmp_path / keep)
        folder = tmp_path / keep / "weights"
        assert set(os.listdir(folder) if folder.exists() else ()) == files
    with pytest.raises(ValueError, match="none, last, tasks, epochs, got 'all'"):
        execute(config_of(keep_weights="all"), tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_kept_weights_are_those_that_gave_the_accuracies(hat_run):
    """For each seed, after each task, on each task, with the method's forward pass."""
    workdir, result = hat_run
    run = jaxcl.load_run(workdir)
    assert run.seeds == (3, 5, 8) and run.num_tasks == 3
    setup_mask = np.asarray(run.problem.stream.logit_mask)
    for k, seed in enumerate(run.seeds):
        for task in range(3):
            x, y = run.data(seed, task, "test")
            for after in (-1, 0, 1, 2):
                weights = run.weights(seed, after)
                out = run.apply(weights, x, task)
                logits = np.where(setup_mask[task], out.logits, -np.inf)
                found = np.mean(logits.argmax(-1) == y)
                assert run.accuracy(weights, seed, task) == pytest.approx(found)
                row = result.baseline if after < 0 else result.matrix[:, after]
                np.testing.assert_allclose(found, row[k, task], atol=1e-6)
    diverged = jax.tree.map(lambda leaf: leaf * np.nan, weights.params)
    assert np.isnan(run.accuracy(weights._replace(params=diverged), seed, 2))
    assert set(out.taps) == {"hidden_0", "hidden_1", "head"}
    np.testing.assert_allclose(out.taps["hidden_0"], x.reshape(len(x), -1), atol=1e-6)


def test_accuracies_of_a_class_incremental_run(tmp_path):
    """The classes in play depend on the last task trained."""
    config = config_of(keep_weights="tasks")
    config.data.scenario = "class"
    result = execute(config, tmp_path)
    run = jaxcl.load_run(tmp_path)
    assert repr(run) == f"<run {config.name}/BP: 3 tasks, seeds [3, 5, 8]>"
    for after in range(3):
        found = [
            [run.accuracy(run.weights(s, after), s, t, after) for t in range(3)]
            for s in run.seeds
        ]
        np.testing.assert_allclose(found, result.matrix[:, after], atol=1e-6)


def test_weights_of_another_seed_are_refused(hat_run):
    """Their classes, pixels or angles may be others: the number would mean nothing."""
    run = jaxcl.load_run(hat_run[0])
    weights = run.weights(3, 1)
    with pytest.raises(ValueError, match=r"of seed 3, asked for is seed 5.*seed=5"):
        run.accuracy(weights, 5, 1)
    own = weights._replace(seed=None)  # as a user makes them: of no seed
    assert 0 <= run.accuracy(own, 5, 1) <= 1
    assert run.accuracy(own, 3, 1) == run.accuracy(weights, 3, 1)


def test_weights_of_an_epoch_lead_to_those_of_the_task(hat_run):
    run = jaxcl.load_run(hat_run[0])
    first, last, end = (
        run.weights(5, 0, epoch=0).params,
        run.weights(5, 0, epoch=1).params,
        run.weights(5, 0).params,
    )
    chex.assert_trees_all_equal(last, end)
    moved = jaxcl.features.weight_drift(first.net, last.net)
    assert all(leaf > 0 for leaf in jax.tree.leaves(moved))


def test_records_hold_every_number_of_the_result(hat_run):
    workdir, result = hat_run
    records = jaxcl.load_run(workdir).records()
    accuracy = [r for r in records if r["quantity"] == "accuracy"]
    assert len(accuracy) == 3 * 4 * 3
    for r in accuracy:
        k, after = (3, 5, 8).index(r["seed"]), r["tasks_trained"]
        row = result.matrix[k, after - 1] if after else result.baseline[k]
        assert r["value"] == row[r["task"]]
    taken = [r for r in records if r["quantity"] == "taken" and r["seed"] == 8]
    values = {(r["layer"], r["tasks_trained"]): r["value"] for r in taken}
    assert values["hidden_1", 3] == result.report["taken"]["hidden_1"][2, 2]
    assert not any("task" in r for r in taken)


def test_what_was_recorded_needs_neither_data_nor_model(hat_run, tmp_path):
    workdir, result = hat_run
    shutil.copytree(workdir, tmp_path / "moved")
    file = tmp_path / "moved" / "config.json"
    config = json.loads(file.read_text())
    config["data"]["dataset"] = "npz:gone.npz"
    config["model"]["name"] = "gone:Net"
    file.write_text(json.dumps(config))
    run = jaxcl.load_run(tmp_path / "moved")
    assert repr(run).endswith("HAT: 3 tasks, seeds [3, 5, 8]>")
    assert run.records() == jaxcl.load_run(workdir).records()
    np.testing.assert_array_equal(run.result.matrix, result.matrix)
    with pytest.raises((ValueError, DataError), match="gone"):
        run.data(3, 0)


def test_a_run_of_another_version_can_be_read(hat_run, tmp_path):
    """Only what is computed anew needs a config that this version understands."""
    workdir, _ = hat_run
    shutil.copytree(workdir, tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"oldfield": 3}))
    run = jaxcl.load_run(tmp_path / "old")
    assert run.records() == jaxcl.load_run(workdir).records()
    told = r"old, written by jaxcl \d.*no field 'oldfield'.*records\(\)"
    with pytest.raises(ValueError, match=told):
        run.weights(3, 0)
    config["method"]["old"] = 3
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"old, written by jaxcl \d.*'old'"):
        jaxcl.load_run(tmp_path / "old").weights(3, 0)
    file.write_text(json.dumps(config | {"seeds": "all"}))
    with pytest.raises(ValueError, match="config.json: seeds must be"):
        jaxcl.load_run(tmp_path / "old")


def test_what_was_not_kept_is_said(hat_run, tmp_path):
    run = jaxcl.load_run(hat_run[0])
    with pytest.raises(ValueError, match=r"no seed 0; its seeds: \(3, 5, 8\)"):
        run.weights(0, 0)
    with pytest.raises(ValueError, match=r"-1..2, got 3"):
        run.weights(3, 3)
    with pytest.raises(FileNotFoundError, match="keep_weights=epochs"):
        run.weights(3, 0, epoch=2)
    with pytest.raises(ValueError, match="'all'"):
        run.data(3, 0, "all")
    with pytest.raises(FileNotFoundError, match="no run's folder$"):
        jaxcl.load_run(tmp_path)
    (tmp_path / "er").mkdir()
    (tmp_path / "er" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="these in it are: er"):
        jaxcl.load_run(tmp_path)


def test_weights_of_another_network_are_refused(hat_run, tmp_path):
    config = config_of("hat", keep_weights="tasks", **{"model.widths": (7,)})
    execute(config, tmp_path)
    other = hat_run[0] / "weights" / "task_000.npz"
    (tmp_path / "weights" / "task_000.npz").write_bytes(other.read_bytes())
    run = jaxcl.load_run(tmp_path)
    with pytest.raises(ValueError, match="of another network or method"):
        run.weights(3, 0)
    (tmp_path / "weights" / "task_001.npz").write_bytes(other.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read"):
        run.weights(3, 1)


def test_only_a_state_that_answers_need_is_kept(tmp_path):
    config = config_of("gpm", keep_weights="last", **{"seeds": (0,)})
    result = execute(config, tmp_path)
    stored = arrays.load(kept.file_of(tmp_path, 2))
    assert not [name for name in stored if "strategy_state" in name]
    run = jaxcl.load_run(tmp_path)
    x, y = run.data(0, 1)
    out = run.apply(run.weights(0, 2), x, 1)
    logits = np.where(run.problem.stream.logit_mask[1], out.logits, -np.inf)
    right = np.mean(logits.argmax(-1) == y)
    np.testing.assert_allclose(right, result.matrix[0, 2, 1], atol=1e-6)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "weights" / "a.npz"
    arrays.save(file, {"x": np.arange(3)})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UsageError, match="No space left on device; free the disk"):
        arrays.save(file, {"x": np.arange(4)})
    assert os.listdir(file.parent) == ["a.npz"]
    np.testing.assert_array_equal(arrays.load(file)["x"], np.arange(3))


def test_a_run_older_than_a_field_is_still_its_config(tmp_path):
    """Fields that later versions have added are at their neutral values."""
    import json

    execute(config_of(seeds=(0,)), tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    del fields["keep_weights"], fields["data"]["stratified"]
    file.write_text(json.dumps(fields))
    execute(config_of(seeds=(0,)), tmp_path)
    with pytest.raises(UsageError, match="keep_weights is 'none' there and 'last' now"):
        execute(config_of(seeds=(0,), keep_weights="last"), tmp_path)
    assert jaxcl.load_run(tmp_path).config.data.stratified is False


def stored(workdir):
    return {
        file.name: arrays.load(file)
        for file in sorted((workdir / "weights").glob("*.npz"))
    }


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for leaf in a[name]:
            np.testing.assert_array_equal(
                a[name][leaf], b[name][leaf], f"{name} {leaf}"
            )


COMMAND = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
from pathlib import Path
from tests.test_opened import config_of
from experiments.runs.execute import execute
fields = {"keep_weights": "epochs", "checkpoint_every": 0.0}
execute(config_of("ewc", **fields), Path(sys.argv[1]))
"""


@pytest.mark.minutes
def test_weights_of_a_run_killed_and_resumed_are_those_of_an_unbroken_one(tmp_path):
    def start(workdir):
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(workdir)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait(timeout=240) == 0
    process = start(broken)
    deadline = time.monotonic() + 240
    while not kept.file_of(broken, 1, 0).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not kept.file_of(broken, 2).exists(), "it was killed too late"
    # The killed run's files are complete; the last ones are written again.
    assert start(broken).wait(timeout=240) == 0
    same(stored(whole), stored(broken))


def test_weights_are_kept_again_where_a_run_goes_on(tmp_path, monkeypatch):
    """Stopped after each epoch in turn, in one process."""
    from experiments.runs import machine

    fields = {"keep_weights": "epochs"}
    execute(config_of("ewc", **fields), tmp_path / "whole")
    monkeypatch.setattr(machine.StopOnSignal, "__call__", lambda self: True)
    for _ in range(5):
        with pytest.raises(Interrupted):
            execute(config_of("ewc", **fields), tmp_path / "parts")
    monkeypatch.undo()
    execute(config_of("ewc", **fields), tmp_path / "parts")
    same(stored(tmp_path / "whole"), stored(tmp_path / "parts"))
