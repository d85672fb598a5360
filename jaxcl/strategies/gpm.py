"""Gradient projection memory.

Saha, Garg & Roy, Gradient projection memory for continual learning, ICLR 2021,
https://arxiv.org/abs/2103.09762; code: https://github.com/sahagobinda/GPM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require_range
from jaxcl.contract import Strategy, strategy
from jaxcl.ops.linalg import EXACT, span_update
from jaxcl.ops.sampling import shuffled
from jaxcl.schema import Count, checked
from jaxcl.strategies._cache import (
    can_be_cached,
    has_room,
    is_of_task,
    projected_inputs,
)
from jaxcl.strategies._layers import (
    choose_layers,
    per_layer,
    require_known,
    require_taps,
)
from jaxcl.strategies._projection import (
    Form,
    Where,
    can_project_inputs,
    input_is_cheaper,
    map_rest,
    on_kernels,
    output_axes,
    project_inputs,
    rows,
)
from jaxcl.transforms import project_out
from jaxcl.types import Setup


class GPMState(NamedTuple):
    """The basis of each projected layer and its size, by layer name."""

    basis: dict[str, jax.Array]  # float32[d, r_max], zero columns beyond count
    count: dict[str, jax.Array]  # int32[]


class GPMCache(NamedTuple):
    """Computed from the state at a task's start."""

    projector: dict[str, jax.Array]  # float32[d, d], M = U Uᵀ
    inputs: dict[str, jax.Array]  # float32[N, d], (I − M) x of the task's examples


def projectors(basis: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """M = U Uᵀ of every layer."""
    return {name: jnp.matmul(u, u.T, precision=EXACT) for name, u in basis.items()}


@checked
def gpm(
    setup: Setup,
    *,
    threshold: float | Sequence[float],
    threshold_step: float = 0.0,
    samples: Count | Sequence[Count] = 300,
    where: Where = "grads",
    form: Form = "auto",
    project_head: bool | None = None,
) -> Strategy:
    """Takes weight steps orthogonal to the inputs that earlier tasks gave each layer.

    In task t, for each layer with kernel [d, n_out] and M = U Uᵀ:

        ∇W ← ∇W − M ∇W

    and at the task's end U grows by `jaxcl.ops.linalg.span_update` until it holds
    threshold + threshold_step · t (t from 0) of the energy of the layer's inputs on
    `samples` random training examples (a convolution's inputs: windows); in the first
    task, as in the official code, without the direction that crosses the threshold.

    Args:
      setup: the run's `Setup`.
      threshold: share of the energy in (0, 1], for all layers or one per layer, in the
        order they run.
      threshold_step: added to the threshold with every task.
      samples: examples that represent a task, for all layers or one per layer.
      where: "grads" projects before the optimizer, as the paper does: exact under SGD,
        and with momentum that starts anew per task; "updates" after it: always exact.
      form: "auto" projects a layer's input in the backward pass where that is cheaper
        (the first layer's once per task, if it reads the data unchanged) and no coarser
        than float32, and the gradient elsewhere; "gradient" always the gradient, as
        "auto" beside others in a `jaxcl.chain`, which may add to the gradient (a
        penalty on weights) or replace it (A-GEM). Both give the same result.
      project_head: whether the classifier is projected; by default unless each of its
        outputs is trained in one task alone, as where the task is told.

    Returns:
      A `Strategy` with a `GPMState`; it reports "taken", count/d of each layer.

    Raises:
      ValueError: an argument out of range; a layer that cannot be projected, by name.

    Biases and normalisation parameters train in the first task only. The paper has no
    biases and does this with normalisation; a bias that kept moving would change every
    earlier task's output. Heads that are not projected train fully. Running statistics
    of normalisation keep following the data: the paper's network has none
    (``norm="batch_current"``).

    Differs from the official code in refusing directions that are rounding noise, and
    in how examples are drawn.
    """
    # Every setting, for the same method beside others.
    given = {k: v for k, v in locals().items() if k != "setup"}
    layers, free = choose_layers(setup, "gpm", project_head)
    level = per_layer("gpm", "threshold", threshold, layers)
    size = per_layer("gpm", "samples", samples, layers)
    for value in level.values():
        last = value + threshold_step * (setup.num_tasks - 1)
        if not (0 < value <= 1 and 0 < last <= 1):
            raise ValueError(
                f"gpm: threshold must lie in (0, 1], got {value} in the first and "
                f"{last:g} in the last of {setup.num_tasks} tasks"
            )

    by_input = [
        layer.name
        for layer in layers
        if where == "grads"
        and form == "auto"
        and can_project_inputs(layer)
        and (can_be_cached(layer) or input_is_cheaper(setup, layer))
    ]

    def init(params):
        require_known(setup, params.net, "gpm")
        basis, count = {}, {}
        for layer in layers:
            # No task can add more directions than it has samples.
            most = setup.num_tasks * size[layer.name] * layer.positions
            basis[layer.name] = jnp.zeros([layer.d_in, min(layer.d_in, most)])
            count[layer.name] = jnp.zeros([], jnp.int32)
        return GPMState(basis, count)

    def before_task(params, state, *, data, model_state, task):
        m = projectors(state.basis)
        inputs = {
            layer.name: projected_inputs(data, m[layer.name])
            for layer in layers
            if layer.name in by_input
            and can_be_cached(layer)
            and has_room(data, layer.d_in)
        }
        return GPMCache(m, inputs)

    def cache_of(state, ctx) -> GPMCache:
        # Without `before_task`, a loop computes the projectors at every step.
        return GPMCache(projectors(state.basis), {}) if ctx.cache == () else ctx.cache

    def forward(apply_fn, state, aux, *, ctx):
        if not by_input:
            return apply_fn
        cache = cache_of(state, ctx)
        index = ctx.batch.index

        def out_of_used(layer, x):
            m = cache.projector[layer.name]

            def anew():
                return x - jnp.matmul(x, m, precision=EXACT)

            ready = cache.inputs.get(layer.name)
            if ready is None or x.shape[0] != index.shape[0]:
                return anew()
            require_range("index", jnp.maximum(index, 0), len(ready))
            at_hand = ready[jnp.maximum(index, 0)]
            return jax.lax.cond(is_of_task(index), lambda: at_hand, anew)

        swapped = [layer for layer in layers if layer.name in by_input]
        return project_inputs(apply_fn, swapped, out_of_used)

    def project_tree(tree, done, state, ctx):
        m = cache_of(state, ctx).projector
        first = ctx.task == 0

        left = {name: matrix for name, matrix in m.items() if name not in done}
        space = on_kernels(tree.net, layers, left)
        project = project_out("projector", axis=output_axes(space, layers))
        net, _ = project.update(tree.net, project.init(tree.net), subspace=space)
        net = map_rest(net, layers, free, lambda leaf: jnp.where(first, leaf, 0))
        return tree._replace(net=net)

    def grads(grads, state, params, *, ctx, out):
        return project_tree(grads, by_input, state, ctx), state

    def updates(updates, state, params, *, grads, ctx, out):
        return project_tree(updates, (), state, ctx), state

    def after_task(params, state, *, data, model_state, task, key):
        order_key, key = jax.random.split(key)
        n = min(max(size.values()), data.capacity)
        position = shuffled(order_key, data.size, data.capacity, n)
        batch = data.take(position)
        apply_fn = data.forward(setup.apply_fn)
        out = apply_fn(params.net, model_state, batch.x, batch.task, key, False)
        require_taps(layers, out.taps, "gpm")
        real = jnp.arange(n) < data.size
        basis, count = {}, {}
        for layer in layers:
            name = layer.name
            tap = out.taps[name][: size[name]]
            weight = real[: size[name]].reshape(-1, *[1] * (tap.ndim - 1))
            held = level[name] + threshold_step * task
            basis[name], count[name] = span_update(
                state.basis[name],
                state.count[name],
                rows(layer, tap * weight),
                jnp.asarray(held, state.basis[name].dtype),
                crossing=task > 0,
                axis=1,
            )
        return params, GPMState(basis, count)

    def report(state):
        return {"taken": {la.name: state.count[la.name] / la.d_in for la in layers}}

    beside = None
    if by_input:
        beside = gpm(setup, **given | {"form": "gradient"})
    hooks = (
        {"forward": forward, "grads": grads}
        if where == "grads"
        else {"updates": updates}
    )
    return strategy(
        init=init,
        before_task=before_task,
        after_task=after_task,
        report=report,
        needs_linear=where == "grads",
        needs_every_task=True,  # biases and norms learn in the first task only
        beside=beside,
        **hooks,
    )
