"""A model's forward pass as a program, with the layers that a capture found in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.nn import treatment
from jaxcl.ops.trees import leaf_names

MOST = 256
"""Examples of a batch that a model is run on to find its layers."""


class Program(NamedTuple):
    """A forward pass as a program, and the meaning of its variables."""

    jaxpr: Any
    taps: list[Any]  # a layer's input, in the order of the calls
    outputs: list[Any]  # and its output
    norms: list[Any]  # a normalisation's output
    x: Any  # the network's input
    params: dict[tuple[str, ...], Any]  # path -> parameter


class Leaves(NamedTuple):
    """Identifies parameters while the model is traced."""

    paths: dict[int, tuple[str, ...]]  # id of the traced array -> path


def traced(f, net, model_state, example) -> tuple[treatment.Capture, Program, Leaves]:
    """Runs an adapter's apply function once on shapes, in training mode.

    Of a larger batch only `MOST` examples: what follows looks at every number of it.
    """
    found: list[treatment.Capture] = []
    paths: dict[int, tuple[str, ...]] = {}
    keep: list[Any] = []  # an id is unique only while its array is alive
    order = [leaf_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(net)]

    def run(net, model_state, x):
        parts = jax.tree.leaves(net)
        keep.extend(parts)
        paths.update({id(p): path for p, path in zip(parts, order, strict=True)})
        task = jnp.zeros(x.shape[:1], jnp.int32)
        with treatment.inspecting() as captures:
            f(net, model_state, x, task, jax.random.key(0), True)
        (capture,) = captures
        found.append(capture)
        calls = capture.calls
        keep.extend(array for c in calls for array in (c.kernel, c.bias))
        outs = [c.x for c in calls], [c.y for c in calls], [n.y for n in capture.norms]
        return *outs, x, parts

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), net)
    batch = (min(example.shape[0], MOST), *example.shape[1:])
    x = jax.ShapeDtypeStruct(batch, example.dtype)
    jaxpr = jax.make_jaxpr(run)(shapes, model_state, x).jaxpr
    (capture,) = found
    out, many = list(jaxpr.outvars), len(capture.calls)
    taps, outputs, rest = out[:many], out[many : 2 * many], out[2 * many :]
    norms, (x, *params) = rest[: len(capture.norms)], rest[len(capture.norms) :]
    by_path = dict(zip(order, params, strict=True))
    return capture, Program(jaxpr, taps, outputs, norms, x, by_path), Leaves(paths)


def readers(program: Program, path: tuple[str, ...]) -> list[str]:
    """Operations that read a parameter, except the product of its own layer."""
    var = program.params.get(path)
    return [
        e.primitive.name for e in program.jaxpr.eqns if any(v is var for v in e.invars)
    ]
