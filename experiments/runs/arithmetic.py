"""What a training step costs on paper: XLA's own count of a program's work."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh

from .cases import Case
from .timers import problem_of

# What a compiled program lists and no kernel computes.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", re.M | re.S)
_OPERATION = re.compile(r"= (?:\(.*?\)|\S+) ([a-z\-]+)\(")

STEPS = 2
"""Of the epoch that is counted."""


class Work(NamedTuple):
    """One training step of all seeds."""

    flops: float
    bytes: float  # that kernels read and write
    kernels: int


def flops(case: Case, row: str, num_seeds: int) -> float:
    """Floating-point operations of a method's step, before any compilation.

    XLA's count takes the body of a loop once, and so one step of an epoch. A short
    epoch leaves little outside of it.

    Args:
      case: the network and its images.
      row: a method of the case.
      num_seeds: S, side by side.

    Returns:
      The number for all seeds.
    """
    return _cost(_epoch(case, row, num_seeds))["flops"]


def work(case: Case, row: str, num_seeds: int) -> Work:
    """The work of a method's step, of the program that this machine compiles.

    Seeds are side by side, as on accelerators. Operations are counted before
    compilation, as `flops` does; bytes and kernels after it, when what can be computed
    in one pass over memory is. Another backend joins operations a little otherwise.

    Args:
      case: the network and its images.
      row: a method of the case.
      num_seeds: S.

    Returns:
      The `Work` of all seeds.
    """
    lowered = _epoch(case, row, num_seeds)
    compiled = lowered.compile()
    bodies = [body for _, body in _COMPUTATION.findall(compiled.as_text())]
    kernels = [
        sum(what not in _FREE for what in _OPERATION.findall(body))
        for body in bodies
        if re.search(r" (dot|custom-call|convolution)\(", body)
    ]
    return Work(
        _cost(lowered)["flops"], _cost(compiled)["bytes accessed"], max(kernels)
    )


def _cost(stage: Any) -> dict[str, float]:
    found = stage.cost_analysis()
    return found[0] if isinstance(found, list) else found


def _epoch(case: Case, row: str, num_seeds: int) -> Any:
    """An epoch of `STEPS` steps of the method, lowered; nothing is computed."""
    small = case._replace(steps=STEPS)
    problem = problem_of(small, row, case.methods[row], num_seeds, "vmap")
    mesh = SeedMesh(num_seeds, "vmap", jax.devices()[:1])
    programs = make_programs(problem, mesh)
    mine, base, zero = mesh.spread(per_seed(problem)), problem.stream.base, np.int32(0)
    seed = jax.eval_shape(programs.init, (), mine, ())
    seed = jax.eval_shape(programs.begin, seed, (mine, mesh.real), ())
    cache = jax.eval_shape(programs.before_task, seed, mine, (base, zero))
    epoch: Any = programs.epoch  # jitted
    return epoch.lower(seed, (mine, cache), (base, zero, zero, zero))
