"""Heads in closed form on the features that a run has kept: what forgets?"""

import copy
import json

import numpy as np
import pytest

from configs import digits
from experiments import heads
from experiments.runs.execute import execute
from experiments.runs.opened import load_run
from jaxcl.features import accuracy, ridge_probe

FIELDS = {
    "seeds": (3, 5),
    "data.num_tasks": 3,
    "data.train_per_task": 80,
    "data.scenario": "class",
    "train.epochs": 2,
}


def config_of(row, **fields):
    config = digits.get_config(row)
    config.update_from_flattened_dict(FIELDS | fields)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bp")
    execute(config_of("bp", keep_weights="tasks"), workdir)
    return load_run(workdir)


@pytest.mark.parametrize("name, row", [("SLDA", "bp_slda"), ("NCM", "bp_ncm")])
def test_a_streamed_head_is_the_strategys(run, tmp_path, name, row):
    """Both train the same network; the strategy sees each task as it ends."""
    result = execute(config_of(row), tmp_path)
    for i, seed in enumerate(run.seeds):
        found = heads.measure(run, seed)
        assert abs(found[name] - result.matrix[i, -1].mean()) < 1e-6
        assert abs(found["softmax"] - run.result.matrix[i, -1].mean()) < 1e-6
        assert set(found) == set(heads.NAMES)


def test_an_oracle_reads_all_tasks_on_the_final_features(run):
    seed, tasks = run.seeds[1], range(run.num_tasks)
    final = run.weights(seed, run.num_tasks - 1)

    def everything(part):
        pairs = [run.data(seed, t, part) for t in tasks]
        x = np.concatenate([x for x, _ in pairs])
        taps = run.apply(final, x, 0).taps["head"]
        return np.asarray(taps), np.concatenate([y for _, y in pairs])

    outputs = run.problem.stream.num_outputs
    probe = ridge_probe(*everything("train"), *everything("valid"), num_classes=outputs)
    per_task = []
    for task in tasks:
        x, y = run.data(seed, task, "test")
        per_task.append(accuracy(probe, run.apply(final, x, task).taps["head"], y))
    found = heads.measure(run, seed)
    assert abs(found["oracle probe"] - np.mean(per_task)) < 1e-6
    assert found["oracle probe"] > found["softmax"]


def test_a_failed_seed_has_no_accuracy_and_is_counted(run):
    """Its features are NaN, and every head fitted to them answered class 0."""
    failed = run.result._replace(status=["failed: task 1, epoch 1", "ok"])
    broken = copy.copy(run)
    broken.result = failed
    found = [heads.measure(broken, seed) for seed in run.seeds]
    assert np.isnan(list(found[0].values())).all()
    line = heads.table({"bp": found}).splitlines()[2]
    mean = 100 * found[1]["oracle SLDA"]
    assert line.startswith("| BP (1 of 2 seeds failed) |") and f"{mean:.2f} ±" in line
    heads.draw({"bp": found})


def test_one_joint_training_has_oracles_and_streams_nothing(command, tmp_path):
    given = [f"--config.{k}={v}" for k, v in FIELDS.items()]
    status, out, err = command(
        *("heads", "--config=digits", "--strategies=joint", f"--workdir={tmp_path}"),
        *("--config.joint_once=True", *given),
    )
    assert status == 0, err
    line = next(line for line in out.splitlines() if line.startswith("| Joint |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    streamed = [n for n, c in zip(heads.NAMES, cells, strict=True) if c == "–"]
    assert streamed == ["NCM", "SLDA"] and "nan" not in line
    assert (tmp_path / "heads.csv").is_file() and (tmp_path / "heads.png").is_file()


def test_joint_training_task_by_task_streams_as_the_others(command, tmp_path):
    given = [f"--config.{k}={v}" for k, v in FIELDS.items()]
    status, out, err = command(
        *("heads", "--config=digits", "--strategies=joint", f"--workdir={tmp_path}"),
        *given,
        "--for=joint:optimizer.lr=0.02",
    )
    assert status == 0, err
    config = json.loads((tmp_path / "joint" / "config.json").read_text())
    assert config["optimizer"]["lr"] == 0.02 != config_of("joint").optimizer.lr
    assert "–" not in next(line for line in out.splitlines() if "| Joint |" in line)


def test_the_table_and_the_figure(run):
    rows = {"bp": [heads.measure(run, seed) for seed in run.seeds]}
    lines = heads.table(rows).splitlines()
    assert lines[0].count("|") == lines[2].count("|") == len(heads.NAMES) + 2
    mean = 100 * np.mean([seed["softmax"] for seed in rows["bp"]])
    assert lines[2].startswith(f"| BP | {mean:.2f} ± ")
    ax = heads.draw(rows).axes[0]
    assert {text.get_text() for text in ax.get_yticklabels()} == {"BP"}


def test_a_later_rows_mistake_is_found_before_the_first_is_trained(command, tmp_path):
    status, _, errors = command(
        *("heads", "--config=digits", "--strategies=bp,er"),
        *("--for=er:optimizer.lr=-1", f"--workdir={tmp_path / 'heads'}"),
    )
    assert status == 2 and "optimizer.lr must be greater than 0" in errors
    assert not (tmp_path / "heads").exists()


def test_without_validation_images_nothing_is_trained(command, tmp_path):
    status, _, errors = command(
        "heads",
        "--config=configs/digits.py",
        "--strategies=bp",
        "--config.data.scenario=class",
        "--config.data.valid_fraction=0",
        f"--workdir={tmp_path / 'heads'}",
    )
    assert status == 2 and "set --config.data.valid_fraction" in errors
    assert not (tmp_path / "heads").exists()
