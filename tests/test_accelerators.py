"""Every method's programs, lowered for GPU and TPU on a machine with neither."""

import jax
import numpy as np
import pytest
from test_contract import CASES

from jaxcl.nn import models
from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh

PLATFORMS = ("cuda", "tpu")


def lowered(problem) -> dict:
    """Name of a program -> its text; seeds run side by side, as on accelerators.

    Each program is lowered for the shapes that the program before it returns.
    """
    mesh = SeedMesh(len(problem.seeds), "vmap", jax.devices()[:1])
    programs = make_programs(problem, mesh)
    mine, base = mesh.spread(per_seed(problem)), mesh.share(problem.stream.base)
    zero = mesh.share(np.int32(0))
    texts = {}

    def lower(name, *args):
        program = getattr(programs, name)
        exported = jax.export.export(program, platforms=PLATFORMS)(*args)
        assert exported.platforms == PLATFORMS
        texts[name] = exported.mlir_module()
        return jax.eval_shape(program, *args)

    seed = lower("init", (), mine, ())
    seed = lower("begin", seed, (mine, mesh.real), ())
    cache = lower("before_task", seed, mine, (base, zero))
    seed, _ = lower("epoch", seed, (mine, cache), (base, zero, zero, zero))
    seed = lower("end", seed, mine, (base, zero))
    lower("evaluate", seed, mine, (base, zero, zero))
    lower("report", seed, mine, ())
    return texts


@pytest.mark.parametrize("name", CASES)
def test_every_method(problem, name):
    texts = lowered(problem(name, CASES[name][0]))
    assert "while" in texts["epoch"]
    if name == "frozen":  # where all seeds agree there is a real branch, no select
        assert "stablehlo.case" in texts["epoch"]


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_convolutions(problem, norm):
    texts = lowered(problem(model=lambda k: models.ResNet18(k, channels=2, norm=norm)))
    assert "while" in texts["epoch"]
