"""A state is used only if it is whole and belongs to this run."""

import errno
import shutil
import warnings

import numpy as np
import optax
import pytest

from jaxcl import files
from jaxcl.nn import models
from jaxcl.training import checkpoints, fingerprint, protocol, saved
from jaxcl.training.checkpoints import CheckpointError
from jaxcl.training.describe import describe
from jaxcl.training.protocol import TaskDone
from tests.faults import injectors

pytestmark = pytest.mark.usefixtures("shared_programs")


def run(problem, folder, **options):
    *_, last = protocol.run(problem, checkpoints=folder, **options)
    return last


def until(problem, folder, tasks):
    """Interrupts a run after a number of tasks."""
    events = protocol.run(problem, checkpoints=folder)
    for event in events:
        if isinstance(event, TaskDone) and event.task + 1 == tasks:
            break
    events.close()


@pytest.fixture
def begun(problem, tmp_path):
    """The folder of a run in which two of three tasks have ended."""
    until(problem(), tmp_path / "state", 2)
    return tmp_path / "state"


def test_every_damage_is_found(begun, tmp_path, rng):
    newest = injectors.newest_step(begun)
    for kind, count in (("bit flip", 100), ("zeroed page", 20), ("truncation", 20)):
        for _ in range(count):
            copy = tmp_path / "copy"
            shutil.copytree(newest, copy)
            what = injectors.damage(copy, kind, rng)
            with pytest.raises(saved.Damaged):
                saved.check(copy)
                raise AssertionError(f"{what}: not seen")
            shutil.rmtree(copy)
    for file in injectors.files_in(newest):
        moved = file.rename(tmp_path / "elsewhere")
        with pytest.raises(saved.Damaged, match="missing"):
            saved.check(newest)
        moved.rename(file)
    (newest / "stray").write_text("x")
    with pytest.raises(saved.Damaged, match="'stray' is new"):
        saved.check(newest)


def test_a_damaged_step_is_set_aside_and_the_one_before_taken(
    problem, begun, damage, finish
):
    newest = injectors.newest_step(begun)
    damage(newest)
    with pytest.warns(UserWarning, match=f"{newest} is damaged: .* from checkpoint 1"):
        last = run(problem(), begun)
    np.testing.assert_array_equal(last.accuracy, finish(problem()).accuracy)
    assert (begun / f"damaged-{newest.name}").is_dir()


def test_where_every_step_is_damaged_the_run_begins_anew(problem, begun, rng, finish):
    for step in begun.iterdir():
        injectors.damage(step, "bit flip", rng)
    with pytest.warns(UserWarning, match="goes on from the beginning"):
        last = run(problem(), begun)
    np.testing.assert_array_equal(last.accuracy, finish(problem()).accuracy)


OTHER = {
    "lr": (dict(optimizer=optax.sgd(0.5)), r"is -0.1 there and -0.5 now"),
    "seeds": (dict(seeds=(0, 1, 3)), r"seeds is \(0, 1, 2\) there and \(0, 1, 3\)"),
    "widths": (
        dict(model=lambda k: models.MLP((17,), k)),
        r"model.widths is \(16,\) there and \(17,\) now",
    ),
    "row": (dict(strategy="ewc", settings={"strength": 1.0}), "strategy"),
    "epochs": (dict(plan=dict(epochs=3)), "plan.epochs is 2 there and 3 now"),
    "data": (dict(valid_fraction=0.3), "stream"),
    "measure": (dict(joint=True), "joint is False there and True now"),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_runs_state_is_refused_in_words(problem, begun, what):
    fields, words = OTHER[what]
    before = {file: file.read_bytes() for file in injectors.files_in(begun)}
    with pytest.raises(CheckpointError, match=f"of another run: .*{words}") as told:
        run(problem(**fields), begun)
    assert "delete" not in str(told.value)
    assert {file: file.read_bytes() for file in injectors.files_in(begun)} == before


def test_a_strategys_setting_is_told(problem, tmp_path):
    until(problem("ewc", {"strength": 1.0}), tmp_path, 1)
    with pytest.raises(CheckpointError, match="strategy.* is 1.0 there and 2.0 now"):
        run(problem("ewc", {"strength": 2.0}), tmp_path)


def test_what_the_caller_says_it_is_of_must_agree(problem, tmp_path):
    until(problem(), tmp_path, 1)
    run(problem(), tmp_path, identity={"name": "'x'"})  # the first run gave no name
    other = {"name": "'y'"}
    with pytest.raises(CheckpointError, match="name is 'x' there and 'y' now"):
        run(problem(), tmp_path, identity=other)


def test_how_seeds_are_laid_out_is_no_other_run(problem, begun):
    assert run(problem(seed_mode="map"), begun).task == 2


def test_other_code_is_told_and_listed_or_refused(problem, begun, monkeypatch, finish):
    mine = fingerprint.versions()
    monkeypatch.setattr(fingerprint, "versions", lambda: mine | {"jax": "9.9"})
    monkeypatch.setattr(protocol, "versions", fingerprint.versions)
    with pytest.raises(CheckpointError, match="jax is .* there and 9.9 now.*--strict"):
        run(problem(), begun, strict=True)
    with pytest.warns(UserWarning, match="made otherwise: jax is .* and 9.9 now"):
        started, *_, last = protocol.run(problem(), checkpoints=begun)
    assert [s["versions"]["jax"] for s in started.sessions] == [mine["jax"], "9.9"]
    np.testing.assert_array_equal(last.accuracy, finish(problem()).accuracy)


def test_equal_starts_are_counted(problem, tmp_path):
    for tasks in (1, 2, 3):
        until(problem(), tmp_path, tasks)
    started, *_ = protocol.run(problem(), checkpoints=tmp_path)
    assert [session["starts"] for session in started.sessions] == [4]


def test_a_state_that_cannot_be_read_is_left_as_it_is(problem, begun, monkeypatch):
    """A disk may fail for a moment only: its states must not be discarded."""
    before = injectors.files_in(begun)

    def failing(self):
        raise OSError(errno.EIO, "Input/output error", str(self))

    monkeypatch.setattr(saved.Path, "read_bytes", failing)
    with pytest.raises(CheckpointError, match="Input/output.*left as it is") as told:
        run(problem(), begun)
    monkeypatch.undo()
    assert "delete" not in str(told.value) and injectors.files_in(begun) == before
    assert run(problem(), begun).task == 2


def test_what_this_code_cannot_read_is_left_as_it_is(problem, begun, monkeypatch):
    def failing(*args, **kwargs):
        raise ValueError("of a form of the future")

    monkeypatch.setattr(checkpoints.ocp.Checkpointer, "restore", failing)
    with pytest.raises(CheckpointError, match="is whole, but.*left as it is") as told:
        run(problem(), begun)
    assert "delete" not in str(told.value)


@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_an_array_of_another_kind_is_not_cast(problem, begun, monkeypatch, change):
    fresh = protocol.fresh

    def other(*args):
        state = fresh(*args)
        new = state.steps[:1] if change == "shape" else state.steps.astype(np.float64)
        return state._replace(steps=new)

    monkeypatch.setattr(protocol, "fresh", other)
    with pytest.raises(CheckpointError, match=r"steps is int64\[3\] there and .* now"):
        run(problem(), begun)


def test_an_earlier_versions_state_is_left_as_it_is(problem, tmp_path):
    (tmp_path / "1000000" / "default").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="earlier version .*left as it is"):
        run(problem(), tmp_path)
    assert (tmp_path / "1000000" / "default").is_dir()


def test_a_full_disk_costs_nothing_that_was_saved(problem, tmp_path, monkeypatch):
    whole = run(problem(), tmp_path / "whole")
    until(problem(), tmp_path / "state", 1)
    monkeypatch.setattr(files, "write_whole", lambda *_: injectors.disk_full())
    with pytest.raises(CheckpointError, match="no space left .*free the disk"):
        run(problem(), tmp_path / "state")
    monkeypatch.undo()
    assert not list((tmp_path / "state").glob(".*.tmp*"))
    last = run(problem(), tmp_path / "state")
    np.testing.assert_array_equal(last.accuracy, whole.accuracy)


def test_a_folder_in_use_is_refused(problem, begun):
    events = protocol.run(problem(), checkpoints=begun)
    next(events)
    with pytest.raises(CheckpointError, match="is in use: process [0-9]+ on .*, since"):
        run(problem(), begun)
    events.close()
    assert run(problem(), begun).task == 2


def test_a_tasks_end_is_told_again_where_the_run_goes_on(problem, begun):
    """The run may have been killed between saving the state and sending the event."""
    started, again, *_ = protocol.run(problem(), checkpoints=begun)
    assert started.task == 2 and isinstance(again, TaskDone) and again.task == 1


def test_a_problem_is_described_alike_before_and_after_a_run(problem):
    build = problem("gpm", {"threshold": 0.9, "samples": 20})
    before = fingerprint.fingerprint(build, {})
    list(protocol.run(build))
    again = problem("gpm", {"threshold": 0.9, "samples": 20})
    assert fingerprint.fingerprint(build, {}) == before
    assert fingerprint.fingerprint(again, {}) == before


@pytest.mark.parametrize(
    "a, b",
    [
        (optax.adam(1e-3), optax.adam(1e-3, b1=0.8)),
        (optax.sgd(0.1), optax.chain(optax.clip(1.0), optax.sgd(0.1))),
        (lambda x: x * 2, lambda x: x * 3),
        ({"x": np.arange(9)}, {"x": np.arange(9)[::-1]}),
        ({1, 2}, {1, 3}),
        (models.MLP((8,), 4), models.MLP((8,), 4, use_bias=False)),
    ],
)
def test_values_that_differ_are_described_otherwise(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert describe(a) == describe(a) != describe(b)
