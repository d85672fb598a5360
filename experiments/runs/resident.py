"""The largest resident memory of a run, and what of it is known beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcl.checks import bytes_of
from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh

from ..config import problem
from . import machine

_RUN = f"{__package__.rpartition('.')[0]}.run"

# Linux counts what a process was forked from to its largest memory, so a run is started
# by a small process and not by this one, which may be larger than the run.
_STARTER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(child.returncode, usage.ru_maxrss)
"""


def small(seeds: int, tasks: int, images: int) -> dict[str, Any]:
    """The fields of a run that is short and as large as a long one."""
    return {
        "seeds": tuple(range(seeds)),
        "data.num_tasks": tasks,
        "data.train_per_task": images,
        "data.test_per_task": images,
        "train.epochs": 1,
    }


def known(config: ConfigDict) -> dict[str, int]:
    """Bytes that a run of a config needs beforehand, by what they are for."""
    of = problem(config)
    mesh = SeedMesh(len(of.seeds), of.seed_mode)
    mine = per_seed(of)
    state = jax.eval_shape(make_programs(of, mesh).init, (), mesh.spread(mine), ())
    return {
        "images": bytes_of(of.stream.base),
        "lists": bytes_of(mine),
        "state": bytes_of(state),
    }


def peak(arguments: Sequence[str]) -> int:
    """The largest resident memory of a run in a process of its own, in bytes.

    Raises:
      UsageError: the run failed; the message is its last line.
    """
    run = [sys.executable, "-m", _RUN, *arguments]
    starter = [sys.executable, "-I", "-S", "-c", _STARTER]
    # A program that was compiled before would leave the compiler's part out.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    told = subprocess.run([*starter, *run], env=env, capture_output=True, text=True)
    status, most = (int(number) for number in told.stdout.split())
    if status:
        last = (told.stderr.strip().splitlines() or ["no message"])[-1]
        raise machine.UsageError(f"a run ended with {status}: {last}")
    return most * (1 if sys.platform == "darwin" else 1024)
