"""Claims: a new folder goes on from what the checkout has recorded."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.claims import carry, choose, hat_rate, pages
from experiments.claims.claim import Run, Stage
from experiments.claims.decide import accuracy
from experiments.claims.pages import record, write
from experiments.claims.recorded import RECORDED
from experiments.claims.report import report
from experiments.claims.streams import small
from experiments.claims.table import CLAIMS
from experiments.runs import results

ROOT = Path(__file__).parents[1]
RATES = (Stage({"optimizer.lr": (0.02, 0.05)}, tasks=2),)


def folder_size(folder: Path):
    """A measurement for the tests: it needs the run's own folder."""
    weights = list((folder / "weights").iterdir())
    return {"files": np.full(2, float(len(weights) > 0))}


def last_digit(folder: Path):
    """A measurement that any finished run allows."""
    return {"last": np.arange(2.0)}


def forbidden(*_):
    raise AssertionError("this has been recorded and must not be run")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A checkout's folder in which two of a claim's runs are recorded, and how."""
    root = tmp_path_factory.mktemp("recorded")
    where, workdir = root / "results" / "claims", root / "work"
    where.parent.mkdir()
    bp = Run("bp", "BP", small("bp"), RATES, measure=folder_size)
    linear = Run("linear", "Linear", small("linear"))
    claim = CLAIMS["chart"]._replace(runs=lambda setting: (bp, linear))
    outcomes = {run.name: carry.carry_out(run, workdir) for run in (bp, linear)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "RECORDED", where)
        write(claim, "toy", outcomes, workdir)
        assert record(claim, "toy", outcomes, workdir) == ()
    return where, claim, outcomes


def test_what_is_recorded_is_not_run_again(recorded, tmp_path, monkeypatch):
    where, claim, outcomes = recorded
    runs = claim.runs("toy")
    monkeypatch.setattr(carry, "execute", forbidden)
    monkeypatch.setattr(choose, "run_points", forbidden)
    assert carry.found(runs, tmp_path) == {}
    again = carry.found(runs, tmp_path, where)
    assert again.keys() == outcomes.keys()
    assert report(claim, "toy", again) == report(claim, "toy", outcomes)
    assert carry.carry_out(runs[0], tmp_path, where).folder.parent == where / "runs"
    assert not list(tmp_path.iterdir())


def test_trials_are_recorded_before_their_run(recorded, tmp_path, monkeypatch):
    """A run takes longer than its trials, and may be stopped."""
    where, workdir = tmp_path / "results" / "claims", tmp_path / "work"
    where.mkdir(parents=True)
    bp = Run("bp", "BP", small("bp"), RATES)
    claim = CLAIMS["chart"]._replace(runs=lambda setting: (bp,))
    chosen = choose.choose(bp, workdir)
    monkeypatch.setattr(pages, "RECORDED", where)
    pages.record_trials("quick", workdir)
    assert not list(where.iterdir())
    pages.record_trials("toy", workdir)
    trials = json.loads((where / "trials.json").read_text())
    assert trials.keys() == {t.key for t in chosen.trials}
    half = results.load(workdir / "trials" / chosen.trials[0].key)
    other = tmp_path / "other" / "trials" / "half"
    other.mkdir(parents=True)
    results.save(other / "result.json", half._replace(tasks_done=1))
    assert choose.finished_trials(tmp_path / "other") == {}  # it goes on, some day
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "run_points", forbidden)
        assert choose.choose(bp, tmp_path / "new", where).trials == chosen.trials
        outcome = carry.carry_out(bp, tmp_path / "new", where)
    write(claim, "toy", {"bp": outcome}, tmp_path / "new")
    record(claim, "toy", {"bp": outcome}, tmp_path / "new")
    assert not (where / "trials.json").exists()
    third = choose.choose(bp, tmp_path / "third", where)
    # A page rounds seconds.
    same = [t._replace(seconds=0.0) for t in chosen.trials]
    assert [t._replace(seconds=0.0) for t in third.trials] == same


def test_a_choice_between_nearly_equal_trials_is_the_same_from_a_record(
    tmp_path, monkeypatch
):
    """Recorded accuracies were rounded; then the first of two trials won."""
    accuracies = iter([0.883, 0.883 + 1e-9])
    monkeypatch.setattr(choose, "_score", lambda _: next(accuracies))
    bp = Run("bp", "BP", small("bp"), RATES)
    claim = CLAIMS["chart"]._replace(runs=lambda setting: (bp,))
    where, workdir = tmp_path / "results" / "claims", tmp_path / "work"
    where.parent.mkdir()
    first = carry.carry_out(bp, workdir)
    assert [t.chosen for t in first.trials] == [False, True]
    monkeypatch.setattr(pages, "RECORDED", where)
    write(claim, "toy", {"bp": first}, workdir)
    assert record(claim, "toy", {"bp": first}, workdir) == ()
    monkeypatch.setattr(choose, "run_points", forbidden)
    again = choose.choose(bp, tmp_path / "new", where, execute=False)
    assert again and again.config.optimizer.lr == 0.05
    assert [t.accuracy for t in again.trials] == [t.accuracy for t in first.trials]


def test_a_workdirs_own_trials_come_before_recorded_ones(recorded, tmp_path):
    where, claim, outcomes = recorded
    bp = claim.runs("toy")[0]
    page = where / "chart" / "claim.json"
    there = json.loads(page.read_text())
    for trial in there["runs"][0]["trials"]:
        trial["accuracy"] = float(not trial["chosen"])
    other = tmp_path / "chart" / "claim.json"
    other.parent.mkdir()
    other.write_text(json.dumps(there))
    workdir = where.parents[1] / "work"
    mine = choose.choose(bp, workdir, tmp_path, execute=False)
    assert mine and mine.trials == outcomes["bp"].trials
    theirs = choose.choose(bp, tmp_path / "new", tmp_path, execute=False)
    assert theirs and theirs.config.optimizer.lr != mine.config.optimizer.lr


KEYS = """
from {package}.claims.keys import key_of
from {package}.claims.table import CLAIMS
from jaxcl.checks import imported
runs = [run for claim in CLAIMS.values() for run in claim.runs("toy")]
print(*sorted(key_of(run.config) for run in runs), sep="\\n")
print(imported("experiments.claims.transfer_model:target_slda", "method").__module__)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("jaxcl.experiments") is None, reason="not installed"
)
def test_a_console_script_finds_the_runs_of_a_clone(tmp_path):
    """Installed, the commands are inside of jaxcl; no key may depend on that."""
    found = {}
    for package, paths in (("experiments", str(ROOT)), ("jaxcl.experiments", "")):
        done = subprocess.run(
            [sys.executable, "-c", KEYS.format(package=package)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        *keys, module = done.stdout.split()
        assert module == f"{package}.claims.transfer_model"
        found[package] = keys
    assert found["experiments"] == found["jaxcl.experiments"]
    assert len(found["experiments"]) > 100


def test_what_was_not_measured_then_is_run_again(recorded, tmp_path, monkeypatch):
    where, claim, _ = recorded
    _, linear = claim.runs("toy")
    measured = linear._replace(measure=folder_size)
    assert carry.found((measured,), tmp_path, where) == {}
    monkeypatch.setattr(carry, "execute", forbidden)
    with pytest.raises(AssertionError, match="must not be run"):
        carry.carry_out(measured, tmp_path, where)


def test_a_second_run_for_a_measurement_replaces_no_recorded_one(
    recorded, tmp_path, monkeypatch
):
    """Other code, or another thread count, and the second run ends elsewhere."""
    shutil.copytree(recorded[0].parent, tmp_path / "results")
    where, claim = tmp_path / "results" / "claims", recorded[1]
    first = recorded[2]["linear"]
    runs = tuple(run._replace(measure=None) for run in claim.runs("toy"))
    runs = (runs[0], runs[1]._replace(measure=last_digit))
    claim = claim._replace(runs=lambda setting: runs)

    def elsewhere(config, folder):
        made = execute(config, folder)
        moved = made._replace(matrix=np.asarray(made.matrix) / 2)
        results.save(folder / "result.json", moved)
        return results.load(folder)

    execute = carry.execute
    monkeypatch.setattr(carry, "execute", elsewhere)
    monkeypatch.setattr(pages, "RECORDED", where)
    files = (where / "runs" / first.key).iterdir()
    before = {file: file.read_bytes() for file in files}
    second = carry.carry_out(runs[1], tmp_path / "work", where)
    np.testing.assert_array_equal(second.result.matrix, first.result.matrix)
    outcomes = carry.found(runs, tmp_path / "work", where)
    write(claim, "toy", outcomes, tmp_path / "work")
    assert record(claim, "toy", outcomes, tmp_path / "work") == ()
    assert {file: file.read_bytes() for file in before} == before
    acc = accuracy(first.result)
    # In a new folder, too, the page tells them apart.
    for folder in (tmp_path / "work", tmp_path / "new"):
        again = carry.found(runs, folder, where)["linear"]
        np.testing.assert_allclose(again.measured["acc"], acc / 2)
        note = report(claim, "toy", {"linear": again})["notes"][-1]
        assert f"ACC {acc.mean() / 2:.2f} %, that of the recorded" in note
    assert "second run" not in str(report(claim, "toy", {"linear": first})["notes"])


def test_a_recorded_page_is_not_replaced_by_one_with_fewer_runs(
    recorded, tmp_path, monkeypatch
):
    where, claim, outcomes = recorded
    monkeypatch.setattr(pages, "RECORDED", where)
    before = {f: f.read_bytes() for f in where.rglob("*") if f.is_file()}
    fewer = {"bp": outcomes["bp"]}
    write(claim, "toy", fewer, tmp_path)
    assert record(claim, "toy", fewer, tmp_path) == ["Linear"]
    assert {f: f.read_bytes() for f in where.rglob("*") if f.is_file()} == before
    write(claim, "toy", outcomes, tmp_path)
    assert record(claim, "toy", outcomes, tmp_path) == ()


def test_every_recorded_trial_has_the_key_of_its_config():
    """Without it a new folder would run the trial again."""
    for file in RECORDED.glob("*/claim.json"):
        page = json.loads(file.read_text())
        runs = {run.name: run for run in CLAIMS[page["claim"]].runs(page["setting"])}
        for row in page["runs"]:
            run = runs[row["name"]]
            for trial in row["trials"]:
                fields = trial["fields"]
                last = [s for s in run.choice if s.fields.keys() <= fields.keys()][-1]
                config = choose.trial_config(run, fields, last)
                assert choose.key_of(config) == trial["key"]


def test_hats_free_units_are_shown_where_its_gates_are_not_measured(tmp_path):
    claim = CLAIMS["hat_room"]
    outcomes = dict(carry.found(claim.runs("toy"), tmp_path, RECORDED))
    hat = outcomes["permuted_30_hat"]
    outcomes.pop("permuted_30_hat_gates", None)
    taken = hat.result.report["taken"]["hidden_0"]
    first = f"{100 * (1 - taken[:, 0].mean()):.0f} %"
    lines = "\n".join(claim.shown(outcomes))
    assert f"| 1 | {first}, " in lines and "not yet run" in lines
    right = claim.figure(outcomes, {}).axes[1]
    labels = [line.get_label() for line in right.lines]
    assert labels == ["free units, hidden_0", "free units, hidden_1"]
    np.testing.assert_allclose(right.lines[0].get_ydata(), 100 * (1 - taken.mean(0)))


def test_a_stream_that_is_not_yet_run_has_no_panels(tmp_path):
    outcomes = carry.found(hat_rate.runs("toy"), tmp_path, RECORDED)
    some = {k: v for k, v in outcomes.items() if k.startswith("rate_permuted_")}
    titles = [ax.get_title() for ax in hat_rate.figure(some, {}).axes]
    assert titles == ["permuted MNIST, plain SGD", "permuted MNIST, momentum .9"]
    assert len(hat_rate.figure({}, {}).axes) == 4
