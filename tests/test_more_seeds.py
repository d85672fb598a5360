"""Runs that differ in their seeds alone, as one row of a report."""

import numpy as np
import pytest

from configs import digits
from experiments.reporting import scores
from experiments.runs import more_seeds, results
from experiments.runs.execute import execute

FIELDS = {
    "data.num_tasks": 2,
    "data.train_per_task": 60,
    "data.test_per_task": 40,
    "train.epochs": 2,
    "model.widths": (8,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeds")
    settings = {"seeds": (4, 7)}, {"seeds": (2,)}, {"seeds": (4, 7, 2)}
    other = {"seeds": (3,), "optimizer.lr": 0.02}
    measured = {"features": "rank", "feature_examples": 20}
    for name, fields in zip("abcd", (*settings, other), strict=True):
        config = digits.get_config("gpm")
        config.update_from_flattened_dict(FIELDS | measured | fields)
        execute(config, root / name)
    return root


def of(folder, names):
    return [results.load(folder / name) for name in names]


def test_seeds_of_two_runs_are_those_of_one(folder):
    (found,), (whole,) = more_seeds.joined(of(folder, "ab")), of(folder, "c")
    assert found.seeds == whole.seeds == [4, 7, 2] and found.config == whole.config
    assert found.status == whole.status == ["ok"] * 3
    # The programs for one, two and three seeds may round differently.
    np.testing.assert_allclose(found.matrix, whole.matrix, atol=0.03)
    np.testing.assert_array_equal(found.matrix[:2], of(folder, "a")[0].matrix)
    np.testing.assert_array_equal(found.matrix[2:], of(folder, "b")[0].matrix)
    np.testing.assert_allclose(found.baseline, whole.baseline, atol=0.03)
    assert found.steps == whole.steps
    assert {q: list(v) for q, v in found.report.items()} == {
        q: list(v) for q, v in whole.report.items()
    }
    assert set(found.features) == set(whole.features)
    for name, values in found.features.items():
        assert np.shape(values) == np.shape(whole.features[name]), name
    assert found.notes[-1] == "of 2 runs, with the seeds 4, 7; 2"


def test_other_runs_stay_apart(folder):
    a, b, c, d = of(folder, "abcd")
    assert [r.seeds for r in more_seeds.joined([a, d, b])] == [[4, 7, 2], [3]]
    half = b._replace(tasks_done=1)
    assert more_seeds.joined([a, half]) == [a, half]
    unknown = [r._replace(config=None) for r in (a, b)]
    assert more_seeds.joined(unknown) == unknown


def test_a_seed_of_two_runs_is_taken_once_if_its_numbers_are_equal(folder):
    a, b, c = of(folder, "abc")
    part = a._replace(  # of the run of seeds 4, 7 and 2: 7 and 2
        seeds=[7, 2],
        config={**a.config, "seeds": [7, 2]},
        status=["ok"] * 2,
        matrix=np.concatenate([a.matrix[1:], b.matrix]),
        baseline=np.concatenate([a.baseline[1:], b.baseline]),
    )
    (found,) = more_seeds.joined([a, part])
    assert found.seeds == found.config["seeds"] == [4, 7, 2]
    np.testing.assert_array_equal(found.matrix, [*a.matrix, *b.matrix])
    assert found.steps == a.steps + a.steps // 2
    for name, values in found.features.items():
        whole = np.shape(c.features[name])
        assert np.shape(values) == whole, name
    told = "of 2 runs, with the seeds 4, 7; 7, 2; seed 7 is in several"
    assert found.notes[-1].startswith(told)
    (found,) = more_seeds.joined([a, a, b])  # a copy of a folder
    assert found.seeds == [4, 7, 2] and found.steps == a.steps + b.steps
    # With other numbers it is in two rows, and a note says why.
    other = part._replace(matrix=part.matrix / 2)
    first, second = more_seeds.joined([a, other])
    assert first is a and second.seeds == [7, 2]
    told = "not joined with the run of seeds 4, 7: seed 7 is in both, with other numb"
    assert second.notes[-1].startswith(told)
    (found,) = more_seeds.joined([a._replace(features={}), a])
    assert found.features.keys() == a.features.keys()  # what was measured is not lost
    np.testing.assert_equal(found.features, a.features)
    nothing = np.full_like(part.matrix, np.nan)  # a failed seed equals itself
    failed = part._replace(matrix=nothing, status=["failed: task 1, epoch 1"] * 2)
    (found,) = more_seeds.joined([failed, failed._replace()])
    assert found.seeds == [7, 2]


def test_what_changes_no_result_may_differ(folder):
    a, b = of(folder, "ab")
    older = {k: v for k, v in b.config.items() if not k.startswith("feature")}
    older |= {"checkpoint_every": 5.0, "features": "rank", "feature_examples": 20}
    (found,) = more_seeds.joined([a, b._replace(config=older)])
    assert found.seeds == [4, 7, 2]
    gone = {"strategy": "gone:l2", "row": "gone:l2", "method": {"strength": 1.0}}
    lost = [r._replace(config={**r.config, **gone}) for r in (a, b)]
    assert len(more_seeds.joined(lost)) == 1


def test_other_versions_are_told_and_other_files_kept_apart(folder):
    a, b = of(folder, "ab")
    (found,) = more_seeds.joined([a, b._replace(versions={**b.versions, "jax": "0"})])
    assert found.notes[-1].endswith("which differ in the version of jax")
    code = [{**session, "code": "other"} for session in b.sessions]
    (found,) = more_seeds.joined([a, b._replace(sessions=code)])
    assert found.notes[-1].endswith("in the version of the code of jaxcl")
    methods = [
        r._replace(versions={**r.versions, "file of my_methods": of_it})
        for r, of_it in ((a, "1"), (b, "2"))
    ]
    assert more_seeds.joined(methods) == methods


def test_edited_data_are_kept_apart(folder):
    """A folder of images has the same name after one of them was replaced."""
    a, b = of(folder, "ab")
    assert a.sessions[-1]["data"] == b.sessions[-1]["data"]
    edited = b._replace(sessions=[{**s, "data": "other"} for s in b.sessions])
    first, second = more_seeds.joined([a, edited])
    assert first is a and second.seeds == b.seeds
    assert second.notes[-1].endswith("seeds 4, 7: it is of other images or labels")
    assert scores.differences(a, edited) == ("the images or labels",)
    older = b._replace(sessions=[{**s, "data": None} for s in b.sessions])
    assert len(more_seeds.joined([a, older])) == 1
    assert scores.differences(a, older) == ()
    config = {
        **b.config,
        "data": dict(b.config["data"]),
        "model": dict(b.config["model"]),
    }
    del config["data"]["faulty"], config["model"]["dtype"]  # fields came later
    assert scores.differences(a, b._replace(config=config)) == ()


def test_what_one_run_has_not_measured_is_nan(folder):
    a, b = of(folder, "ab")
    name = next(name for name in a.features if name.startswith("effective_rank/"))
    longer = np.pad(a.features[name], [(0, 0), (0, 0), (0, 1)])
    (found,) = more_seeds.joined(
        [a._replace(features={name: longer, "x": np.ones((2, 3))}), b]
    )
    assert found.features[name].shape == (3, 3, 3)
    assert np.isnan(found.features[name][2, :, 2]).all()
    np.testing.assert_array_equal(found.features[name][2, :, :2], b.features[name][0])
    assert np.isnan(found.features["x"][2]).all() and found.features["x"][:2].all()


def test_report_shows_one_row(folder, command, tmp_path):
    status, out, _ = command(
        *("report", str(folder / "a"), str(folder / "b"), f"--out={tmp_path}")
    )
    assert status == 0 and out.count("GPM") == 2  # the row, and its note
    assert "of 2 runs, with the seeds 4, 7; 2" in out
    assert "0/3" in out and "#2" not in out
    lines = (tmp_path / "seeds.csv").read_text().splitlines()
    assert len(lines) == 4
