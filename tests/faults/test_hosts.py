"""Several hosts, as processes on the loopback: one result, and no wait for the dead."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.runs import hosts, results

ROOT = Path(__file__).parents[2]
HUNDRED = (
    *("--config=digits:ewc", "--config.seeds=(0,)", "--config.train.epochs=4"),
    f"--grid=method.strength={','.join(str(10 * i) for i in range(1, 11))}",
    f"--grid=optimizer.lr={','.join(str(i / 100) for i in range(1, 11))}",
)


@pytest.mark.parametrize("last", ["failed", "runs 1"])
def test_who_is_lost_is_named(last):
    signs = hosts.Signs(0, ["a", "b", "c"])
    signs.judge({0: "runs 0", 1: "runs 0", 2: "runs 0"}, 0.0)
    signs.judge({0: "runs 0", 1: "left", 2: "runs 1"}, hosts.SILENT)
    signs.judge({0: "runs 0", 1: "left", 2: "runs 1"}, 2 * hosts.SILENT)
    with pytest.raises(hosts.Lost, match=r"process 2 of 3 \(c\)"):
        signs.judge({0: "runs 0", 1: "left", 2: last}, 2 * hosts.SILENT + 1)


def test_a_process_without_any_sign_is_lost_after_a_while():
    signs = hosts.Signs(1, ["a", "b"])
    signs.judge({1: "runs 0"}, 5.0)
    with pytest.raises(hosts.Lost, match=r"process 0 of 2 \(a\)"):
        signs.judge({1: "runs 9"}, 5.1 + hosts.SILENT)


def start(workdir: Path, log: Path, *where: str) -> subprocess.Popen:
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep", *HUNDRED]
            + [f"--workdir={workdir}", "--config.checkpoint_every=0", *where],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def start_two(workdir: Path, logs: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--cpu_devices=1")
    return [
        start(workdir, logs / f"{i}.txt", *where, f"--process_id={i}") for i in (0, 1)
    ]


def matrices(workdir: Path) -> dict[str, np.ndarray]:
    found = sorted(workdir.rglob("result.json"))
    return {str(f.parent.relative_to(workdir)): results.load(f).matrix for f in found}


def newest(workdir: Path) -> int:
    """The newest state of the settings that train together; −1 if there is none."""
    steps = [p.name for p in workdir.rglob("of_*/*") if p.name.isdigit()]
    return max(map(int, steps), default=-1)


@pytest.mark.minutes
def test_a_sweep_goes_on_after_a_host_was_lost(tmp_path):
    """A hundred settings on two hosts, each of them killed once."""
    whole, sweep = tmp_path / "whole", tmp_path / "sweep"
    alone = start(whole, tmp_path / "alone.txt", "--cpu_devices=2")
    assert alone.wait(600) == 0, (tmp_path / "alone.txt").read_text()
    for lost in (1, 0):
        running = start_two(sweep, tmp_path)
        seen = newest(sweep)
        while newest(sweep) <= seen:
            told = (tmp_path / "0.txt").read_text() + (tmp_path / "1.txt").read_text()
            assert all(p.poll() is None for p in running), told
            time.sleep(0.1)
        running[lost].send_signal(signal.SIGKILL)
        assert running[1 - lost].wait(60) == 1
        told = (tmp_path / f"{1 - lost}.txt").read_text()
        errors = [line for line in told.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and f"process {lost} of 2" in errors[0], told
        assert "Traceback" not in told
        running[lost].wait()
    assert len(matrices(sweep)) < 100  # it was not over
    for process in start_two(sweep, tmp_path):
        assert process.wait(600) == 0, (tmp_path / "0.txt").read_text()
    expected = matrices(whole)
    assert len(expected) == 100 and matrices(sweep).keys() == expected.keys()
    for name, matrix in matrices(sweep).items():
        np.testing.assert_array_equal(matrix, expected[name])
