"""Every method in a process of 64 bits, and with a network in bfloat16."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from states import after_each_task
from test_contract import CASES

from jaxcl.strategies import make
from jaxcl.testing.loop import own_loop
from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh


def dtypes(tree):
    return jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)


@pytest.mark.parametrize("name", CASES)
def test_one_trace_in_a_process_of_64_bits(problem, name):
    """A state whose dtypes changed would be traced and compiled again."""
    with jax.enable_x64(True):
        of = problem(name, CASES[name][0])
        mesh = SeedMesh(len(of.seeds), "map")
        programs = make_programs(of, mesh)
        mine, base = mesh.spread(per_seed(of)), of.stream.base
        zero = np.int32(0)
        first = jax.eval_shape(programs.init, (), mine, ())
        seed = jax.eval_shape(programs.begin, first, (mine, mesh.real), ())
        assert dtypes(seed) == dtypes(first)
        cache = jax.eval_shape(programs.before_task, seed, mine, (base, zero))
        of_epoch = (base, zero, zero, zero)
        seed, _ = jax.eval_shape(programs.epoch, seed, (mine, cache), of_epoch)
        assert dtypes(seed) == dtypes(first)
        seed = jax.eval_shape(programs.end, seed, mine, (base, zero))
        assert dtypes(seed) == dtypes(first)
    net = {str(leaf.dtype) for leaf in jax.tree.leaves(first.params.net)}
    assert net == {"float32"}


@pytest.mark.minutes
@pytest.mark.parametrize("name", CASES)
def test_a_loop_of_ones_own_in_a_process_of_64_bits(name):
    with jax.enable_x64(True):
        made = partial(make, name, settings=CASES[name][0])
        seen, error = own_loop(made, optax.sgd(0.1, 0.9))
    assert error is None and len(seen) == 10
    assert all(moment.finite and not moment.twice for moment in seen)
    for moment in seen[1:]:
        assert dtypes(moment.tree) == dtypes(seen[0].tree)


@pytest.mark.minutes
@pytest.mark.parametrize("name", CASES)
def test_a_run_in_bfloat16(problem, name):
    """Weights stay float32 and, except for rounding, learn the same as in float32."""
    wide, narrow = (
        after_each_task(problem(name, CASES[name][0])._replace(dtype=dtype))[-1]
        for dtype in ("float32", "bfloat16")
    )
    assert dtypes(narrow.params) == dtypes(wide.params)
    for a, b in zip(
        jax.tree.leaves(narrow.params.net),
        jax.tree.leaves(wide.params.net),
        strict=True,
    ):
        assert np.isfinite(a).all()
        off = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert 0 < off < 0.2 or not (a - b).any(), off
