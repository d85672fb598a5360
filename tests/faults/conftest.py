"""The injectors as fixtures."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from configs import digits
from tests.faults import injectors


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=injectors.DAMAGES)
def damage(request, rng):
    """Damages a step; the test runs once for each kind of damage."""
    return lambda step: injectors.damage(step, request.param, rng)


@pytest.fixture
def killed_at():
    """Runs a function in a child process that is killed before its n-th file operation.

    Returns whether it was killed; False if it ended before that.
    """

    def run(number: int, folder: Path, fn) -> bool:
        with warnings.catch_warnings():
            # JAX warns of its threads' locks; the child only writes files.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            child = os.fork()
        if not child:
            try:
                injectors.at_operation(number, folder, injectors.kill_me)
                fn()
            finally:
                os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    return run


@pytest.fixture
def quick():
    """A config of digits that runs in seconds."""

    def build(row="bp", **fields):
        config = digits.get_config(row)
        config.seeds = (0, 1)
        config.train.epochs = 1
        config.data.train_per_task = 40
        config.data.num_tasks = 3
        config.update_from_flattened_dict(fields)
        return config

    return build
