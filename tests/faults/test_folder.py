"""A run's folder: one owner, complete files, a result that only grows."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.runs import execute as runs
from experiments.runs import folders, log, machine, record, results
from experiments.runs.execute import execute, prepare
from experiments.runs.machine import UsageError
from experiments.runs.matrix import MatrixFile
from jaxcl import files
from jaxcl.training import protocol
from jaxcl.training.checkpoints import CheckpointError
from tests.faults import injectors

pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = Path(__file__).parents[2]

# --- files and locks, without a run


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path, killed_at, old):
    new = b"new" * 5000
    for number in range(1, 20):
        folder = tmp_path / str(number)
        folder.mkdir()
        if old:
            (folder / "f").write_bytes(old)
        killed = killed_at(
            number, folder, lambda f=folder: files.write_whole(f / "f", new)
        )
        found = (folder / "f").read_bytes() if (folder / "f").exists() else None
        assert found in (old, new)
        files.sweep(folder)
        assert {p.name for p in folder.iterdir()} <= {"f"}
        if not killed:
            break
    assert not killed and number > 2


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(files.os, "fsync", lambda _: injectors.disk_full())
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# Locks a folder, reports it, and holds the lock until it is told to continue.
HOLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
from pathlib import Path
try:
    lock = files.Lock(Path(sys.argv[2]))
except files.InUse as error:
    print(error)
else:
    print("held", flush=True)
    sys.stdin.read()
    lock.release()
"""


def holder(folder):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, files.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_two_processes_one_gets_the_folder(tmp_path):
    for i in range(20):
        both = [holder(tmp_path / str(i)) for _ in range(2)]
        said = [process.stdout.readline() for process in both]
        assert said.count("held\n") == 1
        held = said.index("held\n")
        assert f"in use: process {both[held].pid} on " in said[1 - held]
        for process in both:
            process.communicate()
        assert not (tmp_path / str(i)).exists()  # it was made only for the lock


def test_who_makes_a_folder_is_who_holds_it(tmp_path, monkeypatch):
    # Otherwise the maker would be refused, and the holder would leave the folder behind
    # because it did not make it.
    folder, others, make = tmp_path / "w", [], Path.mkdir

    def slow(self, *args, **options):
        make(self, *args, **options)
        if not others:
            others.append(holder(folder))
            time.sleep(0.7)

    monkeypatch.setattr(Path, "mkdir", slow)
    with files.Lock(folder):
        assert "in use" in others[0].stdout.readline()
        others[0].communicate()
    assert not folder.exists()


def test_a_dead_holders_folder_is_taken_over(tmp_path):
    process = holder(tmp_path)
    assert process.stdout.readline() == "held\n"
    assert f"process {process.pid}" in files.in_use(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / ".lock").exists() and files.in_use(tmp_path) is None
    with files.Lock(tmp_path):
        assert f"process {os.getpid()}" in files.in_use(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_the_matrix_is_whole_whenever_it_is_read(tmp_path, killed_at):
    whole = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    rows = whole.swapaxes(0, 1)
    for number in range(1, 30):
        file = tmp_path / f"{number}.npy"

        def write(file=file):
            matrix = MatrixFile(file)
            for task in range(4):
                matrix.grow(whole, task)

        killed = killed_at(number, file, write)
        if file.exists():
            found = np.load(file)
            np.testing.assert_array_equal(found, rows[: len(found)])
        if not killed:
            break
        again = MatrixFile(file)
        for task in (2, 2, 3):  # it resumes at any task, and may get one twice
            again.grow(whole, task)
        np.testing.assert_array_equal(np.load(file), rows)
    assert not killed and number > 3


def test_sighup_asks_to_stop_and_nohup_is_heeded():
    # The tests themselves may run under nohup.
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            with machine.StopOnSignal() as stop:
                os.kill(os.getpid(), number)
                assert stop()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with machine.StopOnSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_signal_that_was_swallowed_before_training_counts(monkeypatch):
    monkeypatch.setattr("jaxcl._interrupts._asked", True)
    with machine.StopOnSignal() as stop:
        assert stop()


# --- runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run's folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    execute(_config(), folder)
    return folder


def _config():
    from configs import digits

    config = digits.get_config("bp")
    config.seeds = (0, 1)
    config.train.epochs = 1
    config.data.train_per_task = 40
    config.data.num_tasks = 3
    return config


def lines(folder):
    told = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in told]


class Broken(Exception):
    pass


def break_at(monkeypatch, owner, name, number, before=True):
    """Makes the number-th call of a method raise, before or after its own work."""
    inner, calls = getattr(owner, name), []

    def outer(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and before:
            raise Broken
        result = inner(*args, **kwargs)
        if len(calls) == number:
            raise Broken
        return result

    monkeypatch.setattr(owner, name, outer)


@pytest.mark.parametrize("number", [2, 4, 6, 7])
def test_metrics_have_each_line_once_wherever_a_run_breaks_off(
    quick, tmp_path, monkeypatch, whole, number
):
    """Events: the start; then for each task an epoch, and its end, after saving."""
    break_at(monkeypatch, record.Recorder, "take", number)
    with pytest.raises(Broken):
        execute(quick(), tmp_path)
    monkeypatch.undo()
    result = execute(quick(), tmp_path)
    assert lines(tmp_path) == lines(whole)
    np.testing.assert_array_equal(result.matrix, results.load(whole).matrix)
    rows = np.load(tmp_path / "matrix.npy").swapaxes(0, 1)
    np.testing.assert_array_equal(rows, result.matrix.astype(np.float32))


def test_metrics_are_read_once(quick, tmp_path, monkeypatch):
    reads = []
    inner = Path.read_text

    def counted(self, *args, **kwargs):
        reads.append(self.name)
        return inner(self, *args, **kwargs)

    (tmp_path / "metrics.jsonl").write_text('{"task": 0, "epo')  # torn by a kill
    monkeypatch.setattr(Path, "read_text", counted)
    execute(quick(), tmp_path)
    assert reads.count("metrics.jsonl") == 1 and len(lines(tmp_path)) == 3 * 2


def test_a_finished_result_is_never_rewritten(whole, monkeypatch):
    before = (whole / "result.json").read_bytes()
    monkeypatch.setattr(machine, "device", lambda: "another machine")
    again = execute(_config(), whole)
    assert again.tasks_done == 3 and "another machine" not in again.device
    assert (whole / "result.json").read_bytes() == before


def test_a_result_is_not_replaced_by_a_lesser_one(quick, tmp_path, monkeypatch):
    break_at(monkeypatch, record.Recorder, "take", 6)
    with pytest.raises(Broken):
        execute(quick(), tmp_path)
    monkeypatch.undo()
    assert results.load(tmp_path).tasks_done == 2
    for step in (tmp_path / "checkpoints").iterdir():
        step.rename(tmp_path / f"moved-{step.name}")
    break_at(monkeypatch, record.Recorder, "take", 4)
    with pytest.raises(Broken):
        execute(quick(), tmp_path)
    assert results.load(tmp_path).tasks_done == 2
    monkeypatch.undo()
    assert execute(quick(), tmp_path).tasks_done == 3


def test_every_machine_and_version_is_listed(quick, tmp_path, monkeypatch):
    break_at(monkeypatch, record.Recorder, "take", 4)
    with pytest.raises(Broken):
        execute(quick(), tmp_path)
    monkeypatch.undo()
    there = machine.device()
    mine = machine.versions()
    monkeypatch.setattr(machine, "device", lambda: "another machine")
    monkeypatch.setattr(machine, "versions", lambda: mine | {"numpy": "0.1"})
    execute(quick(), tmp_path)
    result = results.load(tmp_path)
    assert result.device == f"{there}; another machine"
    assert [s["versions"]["numpy"] for s in result.sessions] == [mine["numpy"], "0.1"]
    (note,) = result.notes
    assert f"went on from numpy {mine['numpy']} to 0.1" in note


def test_a_folder_is_claimed_when_something_has_run(quick, tmp_path, monkeypatch):
    """A run that fails before its first epoch leaves no files."""
    break_at(monkeypatch, protocol, "make_programs", 1)
    with pytest.raises(Broken):
        execute(quick(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    break_at(monkeypatch, record.Recorder, "take", 2, before=False)
    with pytest.raises(Broken):
        execute(quick(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["row"] == "bp"


def test_a_missing_config_does_not_make_a_state_anybodys(quick, tmp_path, monkeypatch):
    break_at(monkeypatch, record.Recorder, "take", 4)
    with pytest.raises(Broken):
        execute(quick(), tmp_path)
    monkeypatch.undo()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match="optimizer.lr is 0.05 there and 0.5 now"):
        execute(quick(**{"optimizer.lr": 0.5}), tmp_path)
    assert execute(quick(), tmp_path).tasks_done == 3
    assert json.loads((tmp_path / "config.json").read_text())["row"] == "bp"


def test_a_result_without_config_or_state_is_nobodys(quick, tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UsageError, match="no config.json beside it"):
        prepare(quick(), tmp_path)


def test_conflicts_are_found_before_anything_runs(quick, tmp_path, whole):
    with pytest.raises(UsageError, match="train.epochs is 1 there and 2 now"):
        prepare(quick(**{"train.epochs": 2}), whole)
    with files.Lock(tmp_path):
        with pytest.raises(UsageError, match=f"in use: process {os.getpid()} "):
            prepare(quick(), tmp_path)


def test_a_second_process_is_told_who_works_there(quick, tmp_path):
    job = prepare(quick(), tmp_path)
    with files.Lock(tmp_path):
        with pytest.raises(UsageError, match=f"in use: process {os.getpid()} "):
            runs.carry_out(job)
    assert not any(tmp_path.iterdir())


def test_result_json_is_written_at_the_end_and_not_at_each_task(
    quick, tmp_path, monkeypatch
):
    done = []
    inner = results.save

    def save(path, result):
        done.append(result.tasks_done)
        inner(path, result)
        time.sleep(0.3)  # a result of many tasks is long

    monkeypatch.setattr(results, "save", save)
    execute(quick(), tmp_path / "a")
    assert done == [1, 3]
    monkeypatch.setattr(record, "RESULT_EVERY", 0.0)
    execute(quick(), tmp_path / "b")
    assert done[2:] == [1, 3]  # its writing would take more than 1 % of the time
    monkeypatch.setattr(record, "RESULT_SHARE", math.inf)
    execute(quick(), tmp_path / "c")
    assert done[4:] == [1, 2, 3]


def test_leftovers_of_killed_writers_are_swept(quick, tmp_path):
    (tmp_path / "checkpoints" / ".7.tmp").mkdir(parents=True)
    for name in (
        ".result.json.123.tmp",
        "checkpoints/.1000000.tmp.orbax-checkpoint-tmp",
    ):
        (tmp_path / name).write_text("half")
    execute(quick(), tmp_path)
    names = {p.name for p in tmp_path.rglob("*")}
    assert not {name for name in names if name.startswith(".")}


def test_a_process_killed_after_the_result_leaves_nothing_behind(quick, tmp_path):
    execute(quick(), tmp_path)
    wanted = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for name in (".lock", "checkpoints/.lock", ".matrix.npy.123.tmp"):
        (tmp_path / name).write_text("")
    with files.Lock(tmp_path / "checkpoints"):  # in use: is left alone
        execute(quick(), tmp_path)
        assert (tmp_path / "checkpoints" / ".lock").exists()
        assert not (tmp_path / ".lock").exists()
    (tmp_path / "checkpoints" / ".lock").write_text("")
    assert runs.finished(quick(), tmp_path)  # as claims, sweeps and heads skip a run
    left = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert left == wanted


@pytest.mark.parametrize("name", ["metrics.jsonl", "matrix.npy", "result.json"])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    quick, tmp_path, monkeypatch, whole, name
):
    def full(self, *args):
        raise OSError(28, "No space left on device", str(tmp_path / name))

    owner = {"metrics.jsonl": log.Log, "matrix.npy": MatrixFile}.get(name)
    if owner:
        monkeypatch.setattr(owner, {"metrics.jsonl": "_append"}.get(name, "grow"), full)
    else:
        monkeypatch.setattr(results, "save", lambda *_: full(None))
    with pytest.raises(UsageError, match=f"{name}: No space left.*same command again"):
        execute(quick(), tmp_path)
    monkeypatch.undo()
    result = execute(quick(), tmp_path)
    np.testing.assert_array_equal(result.matrix, results.load(whole).matrix)
    assert lines(tmp_path) == lines(whole)


def test_a_result_that_cannot_be_read_is_set_aside(quick, tmp_path, monkeypatch):
    break_at(monkeypatch, record.Recorder, "take", 4)
    with pytest.raises(Broken):
        execute(quick(), tmp_path)
    monkeypatch.undo()
    (tmp_path / "result.json").write_text('{"matrix": [[')
    assert execute(quick(), tmp_path).tasks_done == 3
    assert (tmp_path / "damaged-result.json").read_text() == '{"matrix": [['


def test_strict_reaches_the_state(quick, tmp_path, monkeypatch):
    break_at(monkeypatch, record.Recorder, "take", 4)
    with pytest.raises(Broken):
        execute(quick(), tmp_path)
    monkeypatch.undo()
    from jaxcl.training import fingerprint

    monkeypatch.setattr(fingerprint, "code", lambda: "other")
    with pytest.raises(CheckpointError, match="code of jaxcl is .* and other now"):
        execute(quick(), tmp_path, strict=True)


def test_recorded_results_still_load():
    recorded = sorted((ROOT / "experiments" / "results").rglob("result.json"))
    assert recorded
    old = 0
    for file in recorded:
        told = json.loads(file.read_text()).get("sessions", [])
        assert results.load(file).sessions == told
        old += not told
    assert old  # some are older than that field


def test_no_message_advises_to_delete_a_state():
    """Damaged files are set aside, and whole files stay."""
    for module in (protocol, folders, results, record):
        text = Path(importlib.util.find_spec(module.__name__).origin).read_text()
        assert "delete" not in text and "remove its folder" not in text
