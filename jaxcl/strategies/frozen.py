"""BP**: the feature extractor is frozen after the first task; only heads still train.

Frozen from the start, it is the control: any gain of BP** over it comes from features
learned on task 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.checks import require_range, require_told
from jaxcl.contract import Strategy, strategy
from jaxcl.heads import head_layers, head_mask
from jaxcl.nn.by_example import outputs_by_example
from jaxcl.nn.products import Tag, product
from jaxcl.nn.treatment import is_treated, treated
from jaxcl.ops.trees import leaf_names, starts_with
from jaxcl.schema import Natural, checked
from jaxcl.strategies._cache import has_room, is_of_task, of_all
from jaxcl.strategies._closed_form import reads_vectors
from jaxcl.types import ApplyFn, LayerSpec, PyTree, Setup


@checked
def frozen(setup: Setup, *, epochs: Natural | None = None) -> Strategy:
    """Freezes everything before the classifier once task 1 is learned.

    Δθ_extractor = 0 for every task after the first, and there the extractor runs in
    evaluation mode: with the normalisation statistics that the first task left and
    without dropout, in training too, so that a head is trained on the features that it
    is tested on. Where the network has parts for each task (``norm="batch_per_task"``),
    every task uses those of the first: the others have not been trained.

    *Updates* are masked, not only gradients: weight decay moves a weight whose gradient
    is zero. After the first task the extractor's gradient is zero and not computed; a
    clip by the global norm sees only the heads' gradients.

    A frozen extractor always gives the same features for a task's examples. So if the
    classifier is one dense layer, its inputs are computed once, before the task, and a
    step computes only this layer. A step computes the whole network if its batch holds
    other examples (replayed or augmented ones), if another member of a chain changes
    the network, if the features of a task take more than 1 GiB, if an example's logits
    depend on its batch, and in the first task where `epochs` is above 0.

    Args:
      setup: ``setup.heads`` names the classifier's leaves; all others are the
        extractor's.
      epochs: how many epochs of the first task train the extractor; after them only the
        head trains. 0 freezes it as initialised, with its running statistics. None:
        all.

    Returns:
      A `Strategy` with state ``()``. In a chain it belongs before members that change
      the forward pass (GPM, OWM, HAT): members before it would be in evaluation mode
      too.

    Raises:
      ValueError: ``setup.heads`` is empty, so that nothing would ever train again;
        epochs below 0.
    """
    if not setup.heads:
        raise ValueError("frozen needs setup.heads to name the classifier, got ()")

    layer = _readable(setup)

    def learns(ctx):
        first = ctx.task == 0
        if not epochs:  # the whole task, or nothing of it
            return first & (epochs is None)
        return first & (require_told(ctx.epoch, "frozen", "epoch") < epochs)

    def never_learns(task):
        return task >= (1 if epochs != 0 else 0)

    def before_task(params, state, *, data, model_state, task):
        if layer is None or not has_room(data, layer.d_in):
            return ()
        if not _reads_alone(setup, layer, params.net, model_state):
            return ()
        key = jax.random.key(0)  # the network draws nothing

        def read(batch, name=layer.name):
            first = jnp.zeros_like(batch.task)
            out = setup.apply_fn(params.net, model_state, batch.x, first, key, False)
            return out.taps[name]

        def features():  # in batches of a step's size, which fit into memory
            return of_all(data, read, setup.example.shape[0])

        none = jax.eval_shape(features)
        return jax.lax.cond(
            never_learns(task), features, lambda: jnp.zeros(none.shape, none.dtype)
        )

    def forward(apply_fn, state, aux, *, ctx):
        def apply(net, model_state, x, task, key, train):
            first = jnp.zeros_like(task)

            def learn(net):
                return apply_fn(net, model_state, x, first, key, True)

            def keep(net):
                return apply_fn(net, model_state, x, first, key, False)

            def train_heads(net):
                return keep(_heads_alone(setup, net))

            def train_heads_on_features(net):
                f = _reading(apply_fn, layer, ctx.cache[jnp.maximum(index, 0)])
                return f(_heads_alone(setup, net), model_state, x, first, key, False)

            if not train:
                return keep(net)
            branches, which = [learn, train_heads], jnp.where(learns(ctx), 0, 1)
            index, bare = ctx.batch.index, apply_fn is setup.apply_fn
            if len(ctx.cache) and bare and not is_treated() and len(index) == len(x):
                require_range("index", jnp.maximum(index, 0), len(ctx.cache))
                branches.append(train_heads_on_features)
                ready = never_learns(ctx.task) & is_of_task(index)
                which = jnp.where(ready, 2, which)
            return jax.lax.switch(which, branches, net)

        return apply

    def updates(updates, state, params, *, grads, ctx, out):
        first = learns(ctx)

        def mask(update, is_head):
            return update if is_head else jnp.where(first, update, 0)

        net = jax.tree.map(mask, updates.net, head_mask(setup, updates.net))
        return updates._replace(net=net), state

    return strategy(
        before_task=before_task,
        forward=forward,
        updates=updates,
        needs_every_task=epochs != 0,
    )


def _readable(setup: Setup) -> LayerSpec | None:
    """The classifier, if its inputs can be computed in advance."""
    found = head_layers(setup)
    alone = len(found) == 1 and reads_vectors(found[0])
    return found[0] if alone and not setup.mixes_examples else None


def _reads_alone(setup: Setup, layer: LayerSpec, net: PyTree, model_state) -> bool:
    """Whether the classifier is a layer and no more, and has a row for each example."""
    own = {layer.path}
    if layer.bias:
        own.add(layer.path_of_bias)
    paths = {leaf_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(net)}
    if any(starts_with(path, setup.heads) for path in paths - own):
        return False
    x, key = setup.example, jax.random.key(0)
    task = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    made = outputs_by_example(setup.apply_fn, net, model_state, x, task, key)
    return layer.name in made


def _reading(apply_fn: ApplyFn, layer: LayerSpec, features: jax.Array) -> ApplyFn:
    """The network whose classifier reads given features.

    Nothing reads the results of its other layers, so the compiler leaves them out.
    """

    def compute(spec, x, kernel):
        tag = Tag(spec.name, spec.kind, spec.axis)
        return product(tag, features.astype(x.dtype), kernel, None)

    return treated(apply_fn, lambda task, train: ({layer.name: (layer, compute)}, {}))


def _heads_alone(setup: Setup, net: PyTree) -> PyTree:
    """The network's parameters, of which only the heads get a gradient."""
    is_head = head_mask(setup, net)
    return jax.tree.map(
        lambda leaf, head: leaf if head else jax.lax.stop_gradient(leaf), net, is_head
    )
