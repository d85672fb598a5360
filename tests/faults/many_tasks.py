r"""Measures the cost of a task in a run of very many tasks.

python -m tests.faults.many_tasks [--tasks=1000]

Runs BP on that many tiny tasks of permuted digits and writes everything that a run
writes. Prints seconds per task and resident memory for each hundred tasks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from configs import digits
from experiments.runs import record
from experiments.runs.execute import execute
from jaxcl.training.protocol import TaskDone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1000)
    tasks = parser.parse_args().tasks
    jax.config.update("jax_num_cpu_devices", 2)
    config = digits.get_config("bp")
    config.seeds = (0, 1)
    config.train.epochs = 1
    config.data.update(stream="permuted", scenario="domain", num_tasks=tasks)
    config.data.update(train_per_task=40, test_per_task=20)
    seconds, memory = np.zeros(tasks), np.zeros(tasks)
    inner = record.Recorder.take

    def take(self, event):
        inner(self, event)
        if isinstance(event, TaskDone):
            seconds[event.task] = event.seconds
            memory[event.task] = _resident()

    record.Recorder.take = take
    with tempfile.TemporaryDirectory(prefix="jaxcl-many-") as folder:
        execute(config, Path(folder) / "run")
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    each = np.diff(seconds)
    print("tasks          median s  mean s   MiB")
    for start in range(0, tasks - 1, 100):
        part = each[start : start + 100]
        last = memory[min(start + 99, tasks - 1)]
        print(
            f"{start:>4} to {start + len(part):>4}  {np.median(part):8.3f}"
            f"{part.mean():8.3f}{last:7.0f}"
        )
    print(f"{size / 2**20:.1f} MiB on disk")
    return 0


def _resident() -> float:
    """Resident memory of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024


if __name__ == "__main__":
    sys.exit(main())
