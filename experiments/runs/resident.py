"""The largest resident memory of a run, and what of it is known beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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
    command = [sys.executable, "-m", _RUN, *arguments]
    # A program that was compiled before would leave the compiler's part out.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=told
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            told.seek(0)
            last = (told.read().strip().splitlines() or ["no message"])[-1]
            raise machine.UsageError(f"a run ended with {child.returncode}: {last}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
