"""The table and the figures of features, from a synthetic run."""

import csv
import io

import numpy as np
import pytest

from experiments.reporting import feature_scores, scores
from experiments.reporting.build import build
from experiments.runs import arrays, measured
from experiments.runs.results import Result, load, save

pytestmark = pytest.mark.filterwarnings("error")
SEEDS, TASKS = 3, 3
FIGURES = {f"{n}.{end}" for n in ("rank", "cka", "probes") for end in ("png", "svg")}
# Accuracy of the probe on task j after i tasks; seeds differ by a hundredth.
PROBED = np.array(
    [[0.30, 0.31, 0.32], [0.90, 0.40, np.nan], [0.80, 0.95, 0.50], [0.75, 0.85, 0.92]]
)
RANK = np.array([[9.0, 9, 9], [20, 10, np.nan], [21, 24, 12], [22, 25, 26]])


def run(status=("ok",) * SEEDS, **features):
    matrix = np.zeros((SEEDS, TASKS, TASKS))
    matrix[:] = [[0.9, 0.1, 0.1], [0.6, 0.8, 0.1], [0.5, 0.7, 0.9]]
    return Result(
        config_name="synthetic",
        row="ewc",
        scenario="task",
        seeds=list(range(SEEDS)),
        status=list(status),
        matrix=matrix,
        baseline=np.full((SEEDS, TASKS), 0.1),
        task_names=["a", "b", "c"],
        tasks_done=TASKS,
        steps=1,
        wall_s=1.0,
        device="cpu",
        versions={},
        features=features,
    )


def over_seeds(values):
    shift = 0.01 * np.arange(SEEDS).reshape(SEEDS, *([1] * values.ndim))
    return np.float32(values + shift)


def seen():
    cka = 1 - 0.1 * np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    old = np.tril(np.full((TASKS, TASKS), -0.2), -1)
    old[np.triu_indices(TASKS)] = np.nan
    return {
        "effective_rank/hidden_0": over_seeds(RANK),
        "dormant_share/hidden_0": over_seeds(0.1 * np.ones((4, 3))),
        "probe_ridge/hidden_0": over_seeds(PROBED),
        "cka/hidden_0": np.float32(np.stack([cka] * SEEDS)),
        "conflict_gradient/first epoch": over_seeds(old),
        "conflict_step/first epoch": over_seeds(old + 0.15),
        "seconds": np.ones(4),
    }


def test_every_column_is_what_its_formula_says():
    (row,) = scores.rows([run(**seen())])
    found = feature_scores.of_layer(row, "hidden_0")
    shift = 0.01 * np.arange(SEEDS)
    expected = {
        "rank_untrained": 9 + shift,
        "rank_before": (9 + 10 + 12) / 3 + shift,
        "rank_after": (20 + 24 + 26) / 3 + shift,
        "rank_end": (22 + 25 + 26) / 3 + shift,
        "dormant_end": 0.1 + shift,
        "probe_untrained": 0.31 + shift,
        "probe_end": (0.75 + 0.85 + 0.92) / 3 + shift,
        "forgotten": [((0.90 - 0.75) + (0.95 - 0.85)) / 2] * 3,
        "head_forgotten": [((0.9 - 0.5) + (0.8 - 0.7)) / 2] * 3,
        "lost": [(0.15 / 0.60 + 0.10 / 0.55) / 2] * 3,
        "head_lost": [(0.4 / 0.8 + 0.1 / 0.7) / 2] * 3,
        "cka": [0.8] * 3,
        "cos_gradient": -0.2 + shift,
        "cos_step": -0.05 + shift,
    }
    assert found.keys() == expected.keys() == feature_scores.COLUMNS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, 1e-5, err_msg=name)


def test_a_failed_seed_is_in_no_statistic():
    features = seen()
    features["effective_rank/hidden_0"][1] = np.nan
    (row,) = scores.rows([run(("ok", "failed: task 2, epoch 1", "ok"), **features)])
    found = feature_scores.of_layer(row, "hidden_0")["rank_end"]
    np.testing.assert_allclose(found, (22 + 25 + 26) / 3 + np.array([0, 0.02]), 1e-5)


def test_an_unfinished_run_is_scored_over_the_tasks_done():
    (row,) = scores.rows([run(**seen())._replace(tasks_done=2)])
    found = feature_scores.of_layer(row, "hidden_0")
    np.testing.assert_allclose(found["forgotten"], 0.90 - 0.80, 1e-5)
    np.testing.assert_allclose(found["cka"], 0.9, 1e-5)


def test_what_was_not_measured_is_a_dash():
    some = {"effective_rank/hidden_0": seen()["effective_rank/hidden_0"]}
    rows = scores.rows([run(**some)])
    line = feature_scores.text_table(rows).splitlines()[1].split()
    assert line[:6] == ["EWC", "hidden_0", "9.0", "10.3", "23.3", "24.3"]
    assert line[6:9] == ["–", "–", "–"] and line[-1] == "–"
    parsed = list(csv.DictReader(io.StringIO(feature_scores.csv_table(rows))))
    assert parsed[0]["probe_end_mean"] == "" and parsed[0]["rank_end_max"] != ""


def test_files_come_with_what_was_measured_and_go_without(tmp_path):
    save(tmp_path, run(**seen()))
    arrays.save(tmp_path / measured.FILE_NAME, seen())
    build([load(tmp_path)], tmp_path)
    made = {file.name for file in tmp_path.iterdir()}
    assert FIGURES | {"features.txt", "features.csv"} <= made
    (tmp_path / measured.FILE_NAME).unlink()
    build([load(tmp_path)], tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    assert not left & (FIGURES | {"features.txt", "features.csv"})
