"""In the compiled epoch, the gradient of every shipped network equals float64's.

`python -m tests.gradients` prints all combinations, at the papers' widths too.
"""

import os
import subprocess
import sys
from pathlib import Path

import gradients
import pytest
from gradients import Case

from jaxcl.nn.layers import NORMS

# Each norm with both seed modes and both dropout settings; each case needs a
# compilation of its own.
CASES = [
    Case(model, norm, dropout, seed_mode)
    for i, norm in enumerate(NORMS)
    for model, dropout, seed_mode in (
        ("mlp", True, "vmap"),
        ("alexnet", False, "vmap"),
        ("alexnet", True, "map"),
        ("resnet18", False, ("map", "vmap")[i % 2]),
    )
]


# Rounding as in users' programs: the older emitters round 1.5 times as much.
pytestmark = pytest.mark.usefixtures("newer_emitters")
OFTEN = ("none", "batch")  # cases of the other norms take minutes


def _marked(case):
    marks = () if case.norm in OFTEN else pytest.mark.minutes
    return pytest.param(case, marks=marks, id="-".join(map(str, case[:4])))


@pytest.mark.parametrize("case", map(_marked, CASES))
def test_epoch_computes_the_gradient_of_float64(case):
    error = gradients.check(case)
    assert error.relative <= 1e-5, error


@pytest.mark.minutes
def test_also_under_the_compilers_own_flags():
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    root = Path(__file__).parents[1]
    options = [
        "--models=alexnet",
        "--norms=none,batch,batch_current",
        "--seed_mode=vmap",
    ]
    command = [sys.executable, "-m", "tests.gradients", "--width=small", *options]
    done = subprocess.run(
        command, env=env, cwd=root, capture_output=True, text=True, check=True
    )
    rows = [line.split("|") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 6
    for row in rows:
        assert float(row[5]) <= 1e-5, row
