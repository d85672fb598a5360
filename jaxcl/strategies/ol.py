"""OL, the orthogonal loss: features from the bottom to the top, without labels.

From a researcher's note, https://github.com/Arnolily/Note: "bottom to top,
unsupervised"; the heads are trained on the resulting features.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require_told
from jaxcl.contract import Strategy, strategy
from jaxcl.nn import inspection
from jaxcl.nn.products import is_channels_first
from jaxcl.ops.orthogonal import check_form, orthogonal_loss
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.ops.trees import leaf_names, starts_with, wide
from jaxcl.schema import OneOf, Share, checked
from jaxcl.types import Context, LayerSpec, PyTree, Setup

EXAMPLES = 256  # to measure each layer with at a task's end


class OLState(NamedTuple):
    """Measures of each layer at the end of the last task.

    loss: float32[] per layer, its orthogonal loss.
    dead: float32[] per layer, the share of examples whose outputs are all 0.
    """

    loss: dict[str, jax.Array]
    dead: dict[str, jax.Array]


class Stage(NamedTuple):
    """A layer and the parameters trained with it, while all others stand still."""

    layer: LayerSpec
    read_by: str  # the layer that reads this one's output, after the nonlinearity
    prefixes: tuple[tuple[str, ...], ...]  # of its parameters: its own, its norm's


@checked
def ol(
    setup: Setup,
    *,
    norm: str = "spectral",
    of: str = "examples",
    on: Annotated[str, OneOf(("post", "pre"))] = "post",
    extractor: Share = 0.5,
    later: Annotated[str, OneOf(("train", "freeze"))] = "train",
) -> Strategy:
    """Trains features layer by layer with the orthogonal loss, then heads with labels.

    A task's steps are divided by its progress p: with L hidden layers and s the share
    ``extractor``, layer ⌊L p / s⌋ + 1 minimises

        ‖Y Yᵀ / ‖Y‖₂² − I‖²_F / B

    of its own outputs Y, over its own parameters and those of the norm that follows it,
    while p < s; then the heads minimise the task's loss. Only the heads read labels.
    The gradient stops at each layer's input: the layers below stand still.

    Args:
      setup: the run's `Setup`; its layers form a sequence.
      norm: form of the loss; see `jaxcl.ops.orthogonal.orthogonal_loss`.
      of: likewise.
      on: "post", a layer's output as the next layer reads it, after nonlinearity,
        pooling and dropout; or "pre", the layer's direct output.
      extractor: share of a task's steps that trains the extractor, the same for each
        of its layers; in [0, 1].
      later: "train": the extractor learns in later tasks too; "freeze": it is frozen
        after the first task, and later tasks train only heads.

    Returns:
      A `Strategy` with an `OLState`. While heads train, the extractor runs in
      evaluation mode: heads are trained on the features that they are tested on. Select
      the last weights: validation data cannot tell which extractor is best.

    Raises:
      ValueError: an argument out of range; layers that are no sequence, or that cannot
        be treated, by name; on init, a parameter that belongs to no layer.

    The note gives loss and order. How steps are divided, and that the extractor is in
    evaluation mode under its heads, is ours.
    """
    check_form(norm, of)
    stages = stages_of(setup)
    heads = len(stages)

    def stage(ctx: Context) -> jax.Array:
        done = require_told(ctx.task_progress, "ol", "task_progress")
        number = jnp.floor(heads * done / jnp.maximum(extractor, 1e-9))
        frozen = (ctx.task > 0) & (later == "freeze")
        number = jnp.where((done < extractor) & ~frozen, number, heads)
        return jnp.clip(number, 0, heads).astype(jnp.int32)

    def only(net: PyTree, number: int) -> PyTree:
        owner = owners(setup, stages, net)
        return jax.tree.map(
            lambda leaf, i: leaf if i == number else jax.lax.stop_gradient(leaf),
            net,
            owner,
        )

    def output_of(s: Stage, net: PyTree, taps: dict[str, jax.Array]) -> jax.Array:
        if on == "post":
            return taps[s.read_by]
        return layer_output(s.layer, net, taps[s.layer.name])

    def init(params):
        owners(setup, stages, params.net)  # refuses leaves of no stage
        names = [s.layer.name for s in stages]
        return OLState(
            *({name: jnp.zeros((), jnp.float32) for name in names} for _ in range(2))
        )

    def forward(apply_fn, state, aux, *, ctx):
        def apply(net, model_state, x, task, key, train):
            def run(train):
                return lambda: apply_fn(net, model_state, x, task, key, train)

            if not train:
                return run(False)()
            return jax.lax.cond(stage(ctx) == heads, run(False), run(True))

        return apply

    def loss(loss_fn, state):
        def staged(params, ctx):
            def features(number):
                def branch(params):
                    net = only(params.net, number)
                    _, out = loss_fn(params._replace(net=net), ctx)
                    y = output_of(stages[number], net, out.taps)
                    weight = ctx.batch.weight  # replayed rows may follow the batch's
                    return orthogonal_loss(
                        wide(y[: len(weight)]), norm=norm, of=of, weight=weight
                    ), out

                return branch

            def classify(params):
                return loss_fn(params._replace(net=only(params.net, heads)), ctx)

            branches = [*map(features, range(heads)), classify]
            return jax.lax.switch(stage(ctx), branches, params)

        return staged

    def updates(updates, state, params, *, grads, ctx, out):
        # Updates, not only gradients: momentum and weight decay move all weights.
        now, owner = stage(ctx), owners(setup, stages, updates.net)
        net = jax.tree.map(lambda u, i: jnp.where(now == i, u, 0), updates.net, owner)
        return updates._replace(net=net), state

    def after_task(params, state, *, data, model_state, task, key):
        n = min(EXAMPLES, data.capacity)  # drawn: data may lie by class
        order = shuffled(key, data.size, data.capacity, n)
        position, weight = batch_positions(order, 0, n, data.size)
        batch = data.take(position)
        apply_fn = data.forward(setup.apply_fn)
        out = apply_fn(params.net, model_state, batch.x, batch.task, key, False)
        found = OLState({}, {})
        for s in stages:
            y = output_of(s, params.net, out.taps)
            zero = (y.reshape(n, -1) == 0).all(1)
            value = orthogonal_loss(wide(y), norm=norm, of=of, weight=weight)
            found.loss[s.layer.name] = value.astype(jnp.float32)
            found.dead[s.layer.name] = jnp.average(zero, weights=weight)
        return params, found

    def report(state):
        return {"orthogonal_loss": state.loss, "dead": state.dead}

    return strategy(
        init=init,
        forward=forward,
        loss=loss,
        updates=updates,
        after_task=after_task,
        report=report,
        needs_every_task=later == "freeze",
    )


def stages_of(setup: Setup) -> tuple[Stage, ...]:
    """The hidden layers in their order, bottom to top.

    Raises:
      ValueError: the layers form no sequence; the message names the place.
    """
    inspection.require_treatable(setup.layers, "ol")
    heads = [x for x in setup.layers if starts_with(x.path, setup.heads)]
    hidden = [x for x in setup.layers if x not in heads]
    if not heads or not hidden:
        raise ValueError(
            "ol needs setup.layers with a classifier that setup.heads names and a "
            f"layer before it, got layers {[x.name for x in setup.layers]} and heads "
            f"{setup.heads}"
        )
    for norm in setup.norms:
        if norm.follows is None:
            raise ValueError(
                f"ol cannot treat normalisation {norm.name!r}: it does not read a "
                "layer's output directly, so that it belongs to no layer"
            )
    stages, below = [], ()
    for layer, above in zip(hidden, [*hidden[1:], heads[0]], strict=True):
        if layer.feeds_on != below or above.feeds_on != (layer.name,):
            raise ValueError(
                f"ol trains layers one after another: layer {layer.name!r} must read "
                f"{' and '.join(below) or 'the input'} alone and feed {above.name!r} "
                f"alone, got {layer.name!r} fed by {layer.feeds_on} and "
                f"{above.name!r} by {above.feeds_on} (the model's property 'wiring')"
            )
        norms = (n.path for n in setup.norms if n.follows == layer.name)
        stages.append(Stage(layer, above.name, (layer.path[:-1], *norms)))
        below = (layer.name,)
    return tuple(stages)


def owners(setup: Setup, stages: tuple[Stage, ...], net: PyTree) -> PyTree:
    """A tree like ``net`` with the stage number of each leaf; heads have the last one.

    Raises:
      ValueError: a parameter that belongs to no layer, no norm and no head.
    """

    def owner(path, _):
        names = leaf_names(path)
        if starts_with(names, setup.heads):
            return len(stages)
        for number, stage in enumerate(stages):
            if starts_with(names, stage.prefixes):
                return number
        raise ValueError(
            f"ol does not know which layer parameter {'/'.join(names)!r} belongs to"
        )

    return jax.tree_util.tree_map_with_path(owner, net)


def layer_output(spec: LayerSpec, net: PyTree, x: jax.Array) -> jax.Array:
    """A layer's output x K + b for its input x; channels last."""
    y = inspection.layer_output(spec, net, x)
    return jnp.moveaxis(y, 1, -1) if is_channels_first(spec) else y
