"""Orthogonal weights modification.

Zeng, Chen, Cui & Yu, Continual learning of context-dependent processing in neural
networks, Nature Machine Intelligence 2019, https://arxiv.org/abs/1810.01256; code:
https://github.com/beijixiong3510/OWM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require_told
from jaxcl.contract import Strategy, strategy
from jaxcl.ops.linalg import EXACT, rls_update
from jaxcl.ops.trees import wide
from jaxcl.schema import Count, NonNegative, OneOf, Positive, checked
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
    kernels,
    map_rest,
    on_kernels,
    output_axes,
    project_inputs,
    rows,
)
from jaxcl.transforms import project_onto
from jaxcl.types import Context, LayerSpec, Setup

PROGRESS = ("epoch", "task")


class OWMState(NamedTuple):
    """The input space that is still free in each projected layer, by layer name."""

    inverse: dict[str, jax.Array]  # float32[d, d], P, symmetric


def mean_rows(
    layer: LayerSpec, tap: jax.Array, weight: jax.Array, window_stride: int
) -> jax.Array:
    """The batch-mean input, [d]; for a convolution its windows, [positions, d]."""
    of = weight.sum()
    share = weight / jnp.where(of > 0, of, 1)
    mean = rows(layer, jnp.einsum("b,b...->...", share, tap)[None], window_stride)
    return mean[0] if layer.positions == 1 else mean


@checked
def owm(
    setup: Setup,
    *,
    alpha: Positive | Sequence[Positive] = 1.0,
    alpha_decay: Positive | Sequence[Positive] = 1.0,
    progress: Annotated[str, OneOf(PROGRESS)] = "task",
    window_stride: Count = 2,
    norm_penalty: NonNegative = 0.0,
    where: Where = "grads",
    form: Form = "auto",
    project_head: bool | None = None,
) -> Strategy:
    """Takes weight steps that hardly change layer outputs for past batch-mean inputs.

    At every step, also in the first task, for each layer with kernel [d, n_out], the
    batch's mean input x̄ and the progress l in [0, 1]:

        α = alpha · alpha_decay^l
        P ← P − k kᵀ/(α + x̄ᵀk),  k = P x̄     (at first P = I)
        ∇W ← P ∇W

    A convolution takes the windows of the batch-mean input one after another, row by
    row: every `window_stride`-th of those that its kernel reads, along either axis.

    Args:
      setup: the run's `Setup`.
      alpha: > 0, for all layers or one per layer, in the order they run.
      alpha_decay: > 0, the factor at the end of the progress; likewise.
      progress: l is the share of the "task"'s steps that are done, (n − 1)/N at step n
        of N, or follows the "epoch", (b − 1)/(B − 1) at batch b of B, which reaches 1.
      window_stride: ≥ 1; 2 as the official code, 1 takes every window. A window left
        out is protected only as far as it resembles those taken; P fills more slowly.
      norm_penalty: λ ≥ 0, adds λ Σ ‖W‖, not squared, over the projected kernels.
      where: "grads" projects before the optimizer, as the paper does; "updates"
        projects the updates, which Adam, weight decay and similar optimizers need.
      form: "auto" projects a layer's input in the backward pass where that is cheaper
        and no coarser than float32, without norm_penalty; "gradient" the gradient, as
        "auto" does beside others in a `jaxcl.chain`, which may add to the gradient (a
        penalty on weights) or replace it (A-GEM). Both give the same result.
      project_head: whether the classifier is projected; by default unless each of its
        outputs is trained in one task alone, as where the task is told.

    Returns:
      A `Strategy` with an `OWMState`; it reports "taken", 1 − tr P/d of each layer: the
      share of its input space that is no longer free.

    Raises:
      ValueError: an argument out of range; a layer that cannot be projected, by name.

    Biases and normalisation parameters are never trained. Heads that are not projected
    train fully.

    Differs from the official code in the biases of its class-incremental MNIST
    networks, which are trained as the weights of one more input that is always 1 (its
    other networks have none, or random ones that stand still); in that the "epoch"'s
    progress counts its own batches, not 600, and reaches 1; in that inputs which are
    taken already change nothing (see `jaxcl.ops.linalg.rls_update`); and for a
    convolution with a stride, which the official networks do not have: that code takes
    the windows at every second pixel, this one every second of the windows that the
    layer reads.
    """
    # Every setting, for the same method beside others.
    given = {k: v for k, v in locals().items() if k != "setup"}
    layers, free = choose_layers(setup, "owm", project_head)
    start = per_layer("owm", "alpha", alpha, layers)
    decay = per_layer("owm", "alpha_decay", alpha_decay, layers)

    by_input = [
        layer
        for layer in layers
        if where == "grads"
        and form == "auto"
        and norm_penalty == 0
        and can_project_inputs(layer)
        and layer.kind == "dense"
        and layer.positions == 1
        and input_is_cheaper(setup, layer)
    ]

    def init(params):
        require_known(setup, params.net, "owm")
        return OWMState({layer.name: jnp.eye(layer.d_in) for layer in layers})

    def grown(state: OWMState, layer: LayerSpec, tap, ctx: Context) -> jax.Array:
        now, falls = start[layer.name], decay[layer.name]
        if not isinstance(falls, float | int) or falls != 1:
            field = "epoch_progress" if progress == "epoch" else "task_progress"
            now = now * falls ** require_told(getattr(ctx, field), "owm", field)
        weight = ctx.batch.weight
        # The first rows are the batch's; replayed examples may follow them.
        tap = jax.lax.stop_gradient(tap[: len(weight)])
        mean = mean_rows(layer, tap, weight, window_stride)
        return rls_update(state.inverse[layer.name], mean, now)

    def forward(apply_fn, state, aux, *, ctx):
        def onto_free(layer, x):
            # This is computed again from the taps after the backward pass; the compiler
            # merges the two.
            return jnp.matmul(x, grown(state, layer, x, ctx), precision=EXACT)

        return project_inputs(apply_fn, by_input, onto_free) if by_input else apply_fn

    def penalty(params, state, *, task):
        squares = [jnp.sum(wide(w) ** 2) for w in kernels(params.net, layers)]
        # The root has no derivative at 0; 1e-30 is far below any weight's rounding.
        return norm_penalty * sum(jnp.sqrt(s + 1e-30) for s in squares)

    def project_tree(tree, done, state, ctx, out):
        require_taps(layers, out.taps, "owm")
        inverse = {la.name: grown(state, la, out.taps[la.name], ctx) for la in layers}

        left = {la.name: inverse[la.name] for la in layers if la not in done}
        onto = on_kernels(tree.net, layers, left)
        project = project_onto(axis=output_axes(onto, layers))
        net, _ = project.update(tree.net, project.init(tree.net), projector=onto)
        net = map_rest(net, layers, free, jnp.zeros_like)
        return tree._replace(net=net), OWMState(inverse)

    def grads(grads, state, params, *, ctx, out):
        return project_tree(grads, by_input, state, ctx, out)

    def updates(updates, state, params, *, grads, ctx, out):
        return project_tree(updates, (), state, ctx, out)

    def report(state):
        share = {n: 1 - jnp.trace(p) / p.shape[0] for n, p in state.inverse.items()}
        return {"taken": {layer.name: share[layer.name] for layer in layers}}

    beside = None
    if by_input:
        beside = owm(setup, **given | {"form": "gradient"})
    hooks = (
        {"forward": forward, "grads": grads}
        if where == "grads"
        else {"updates": updates}
    )
    return strategy(
        init=init,
        penalty=penalty if norm_penalty else None,
        report=report,
        needs_linear=where == "grads",
        beside=beside,
        **hooks,
    )
