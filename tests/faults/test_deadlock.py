"""Decompositions on several devices of a CPU do not hang."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The matrices are so large that LAPACK would split a batch of them among threads. The
# program has enough other work to run on the threads of the same pool.
CODE = """
import sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from configs import digits
from experiments import config as configs
from jaxcl.training import protocol
config = digits.get_config(sys.argv[2])
config.seeds = tuple(range(4))
config.seed_mode = "vmap"
config.train.epochs = 1
config.data.num_tasks = 2
config.data.train_per_task = 60
for _ in range(int(sys.argv[3])):
    *_, last = protocol.run(configs.problem(config))
assert last.task == 1 and np.isfinite(last.accuracy[:, -1]).all()
"""


@pytest.mark.minutes
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("row", ["gpm"])
def test_a_method_that_decomposes_ends_on_several_devices(row, devices):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(devices), row, "1"],
        cwd=ROOT,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
