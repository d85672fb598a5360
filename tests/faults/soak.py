r"""Interrupts runs, damages their files, and checks that they end with the same result.

python -m tests.faults.soak --minutes=3 [--rows=ewc,gpm] [--seed=1]

Each trial runs one method on digits in its own folder and kills it several times, at a
random moment or just before a random file operation. Sometimes it is asked to stop
instead, its newest state is damaged, or two processes start at once. Then it runs to
its end. Its files must equal those of an uninterrupted run, except for seconds and the
list of processes. Prints what was done, and ends with status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.xla_flags import FASTER

if __name__ == "__main__":  # before JAX is imported
    # A trial's time goes into compiling: as in tests/conftest.py, do less, and once.
    os.environ["XLA_FLAGS"] = f"{FASTER} {os.environ.get('XLA_FLAGS', '')}"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from configs import digits  # noqa: E402
from experiments.runs.execute import execute  # noqa: E402
from experiments.runs.machine import UsageError  # noqa: E402
from jaxcl.training.checkpoints import CheckpointError  # noqa: E402
from jaxcl.training.protocol import Interrupted  # noqa: E402
from tests.faults import injectors  # noqa: E402

ROWS = ("ewc", "hat", "gpm", "agem", "er", "derpp")
OPERATIONS = 150  # about as many as in one run
DIFFERS = ("wall_s", "sessions", "device", "versions")
ENDED, REFUSED, STOPPED = 0, 2, 130


def config_of(row: str):
    config = digits.get_config(row)
    config.seeds = (0, 1)
    config.checkpoint_every = 0.0  # after every epoch
    config.train.epochs = 3
    config.data.num_tasks = 3
    config.data.train_per_task = 60
    return config


class Child:
    """A run in a separate process, forked before JAX has started anything."""

    def __init__(self, row: str, workdir: Path, kill_at: int | None = None):
        self.log = workdir.with_name(f"{workdir.name}.{time.monotonic_ns()}.log")
        self.pid = os.fork()
        if not self.pid:
            os._exit(_run(row, workdir, self.log, kill_at))

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int | None:
        """The child's exit status, negative for a signal; None if it still runs."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= end:
                return None
            time.sleep(0.005)


def _run(row: str, workdir: Path, log: Path, kill_at: int | None) -> int:
    """Does the child's work; returns its exit status."""
    number = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(number, 1)
    os.dup2(number, 2)
    try:
        jax.config.update("jax_num_cpu_devices", 2)
        cache = str(workdir.parent / "compiled")
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        if kill_at is not None:
            injectors.at_operation(kill_at, workdir, injectors.kill_me)
        execute(config_of(row), workdir)
        return ENDED
    except (Interrupted, KeyboardInterrupt):  # the latter before it could save
        return STOPPED
    except (UsageError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return 1


def left_by(workdir: Path) -> dict[str, object]:
    """The files of a finished run, without the fields that may differ."""
    result = json.loads((workdir / "result.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    names = {p.name for p in workdir.iterdir()}
    return {
        "result": {k: v for k, v in result.items() if k not in DIFFERS},
        "metrics": [{k: v for k, v in m.items() if k != "seconds"} for m in metrics],
        "matrix": (workdir / "matrix.npy").read_bytes(),
        "config": (workdir / "config.json").read_bytes(),
        "leftovers": {n for n in names if n.startswith(".")},
    }


class Soak:
    """Trials, one after another, and their outcomes."""

    def __init__(self, folder: Path, rng: np.random.Generator):
        self.folder, self.rng = folder, rng
        self.wanted: dict[str, dict[str, object]] = {}
        self.seconds: dict[str, float] = {}  # of an uninterrupted run
        self.count: Counter[str] = Counter()
        self.faults: list[str] = []

    def reference(self, row: str) -> None:
        """Runs a row uninterrupted: once to compile and compare, once for its time."""
        if row in self.wanted:
            return
        for name in ("first", "second"):
            workdir = self.folder / f"{row}-{name}"
            start = time.monotonic()
            child = Child(row, workdir)
            if child.wait(600) != ENDED:
                raise RuntimeError(f"{row}: {child.log.read_text()[-2000:]}")
            self.seconds[row] = time.monotonic() - start
        self.wanted[row] = left_by(workdir)

    def trial(self, row: str) -> None:
        """Interrupts a run several times, lets it end, and compares."""
        self.count["trials"] += 1
        workdir = self.folder / f"{row}-{self.count['trials']}"
        began = len(self.faults)
        for _ in range(int(self.rng.integers(2, 7))):
            status = self.broken(row, workdir)
            if status == ENDED:
                break
            if status not in (-signal.SIGKILL, -signal.SIGTERM, STOPPED):
                self.fault(row, workdir, f"ended with status {status}")
            self.damaged(workdir)
        self.ending(row, workdir)
        if len(self.faults) == began:
            shutil.rmtree(workdir)

    def broken(self, row: str, workdir: Path) -> int:
        """Runs until it is killed or asked to stop; returns the exit status."""
        how = self.rng.choice(["moment", "operation", "asked"], p=[0.6, 0.3, 0.1])
        number = int(self.rng.integers(1, OPERATIONS)) if how == "operation" else None
        child = Child(row, workdir, number)
        longest = 1.1 * self.seconds[row]
        seconds = 600.0 if number else float(self.rng.uniform(0, longest))
        status = child.wait(seconds)
        if status is None:
            asked = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
            with_ = self.rng.choice(asked) if how == "asked" else signal.SIGKILL
            child.send(int(with_))
            status = child.wait(120)
            if status is None:
                child.send(signal.SIGKILL)
                child.wait(60)
                self.fault(row, workdir, f"did not stop when sent signal {with_}")
                return -signal.SIGKILL
        self.note(child)
        if status == -signal.SIGKILL:
            self.count[f"kills, {how}"] += 1
            self.count["kills"] += 1
        elif status != ENDED:
            self.count["asked to stop"] += 1
            status = STOPPED if status < 0 else status  # before it could save
        return status

    def damaged(self, workdir: Path) -> None:
        step = injectors.newest_step(workdir / "checkpoints")
        if step is None or self.pending or self.rng.random() > 0.25:
            return
        result = workdir / "result.json"
        if result.exists() and json.loads(result.read_text())["tasks_done"] == 3:
            return  # the state will not be read again
        kind = str(self.rng.choice(list(injectors.DAMAGES)))
        injectors.damage(step, kind, self.rng)
        self.count[f"damage: {kind}"] += 1
        self.pending = kind

    pending = ""  # a damage that the next process must find

    def note(self, child: Child) -> None:
        """Counts a damage that a process has reported."""
        if self.pending and "is damaged" in child.log.read_text():
            self.count[f"found: {self.pending}"] += 1
            self.pending = ""

    def ending(self, row: str, workdir: Path) -> None:
        """Lets the run end, sometimes beside a second process, and compares."""
        pair = self.rng.random() < 0.25
        children = [Child(row, workdir) for _ in range(2 if pair else 1)]
        statuses = [child.wait(600) for child in children]
        told = [child.log.read_text() for child in children]
        for child in children:
            self.note(child)
        if pair:
            self.count["two at once"] += 1
            self.count["one of two refused"] += REFUSED in statuses
        refused = [text for text, s in zip(told, statuses, strict=True) if s == REFUSED]
        if ENDED not in statuses or not {*statuses} <= {ENDED, REFUSED}:
            self.fault(row, workdir, f"ended with {statuses}: {told[0][-1500:]}")
            return
        if any("is in use: process" not in text for text in refused):
            self.fault(row, workdir, f"refused otherwise: {refused}")
        if self.pending:
            self.fault(row, workdir, f"{self.pending} not found")
            self.pending = ""
        left = left_by(workdir)
        for name, value in self.wanted[row].items():
            if left[name] != value:
                self.fault(row, workdir, f"{name} differs from the unbroken run's")

    def fault(self, row: str, workdir: Path, what: str) -> None:
        self.faults.append(f"{row}, {workdir}: {what}")
        print(f"FAULT {self.faults[-1]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = int(time.time()) if given.seed is None else given.seed
    end = time.monotonic() + 60 * given.minutes
    folder = Path(tempfile.mkdtemp(prefix="jaxcl-soak-"))
    soak = Soak(folder, np.random.default_rng(seed))
    rows = given.rows.split(",")
    while time.monotonic() < end:
        row = rows[soak.count["trials"] % len(rows)]
        soak.reference(row)
        soak.trial(row)
    print(f"seed {seed}, rows {', '.join(soak.wanted)}")
    for what, count in sorted(soak.count.items()):
        print(f"{what:<20}{count:>5}")
    print(f"{'faults':<20}{len(soak.faults):>5}")
    if not soak.faults:
        shutil.rmtree(folder)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
