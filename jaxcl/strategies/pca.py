"""PCA of the first task's inputs as the extractor; heads are trained on it.

It shows what an extractor without labels or gradients is worth, compared with OL's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.checks import require
from jaxcl.contract import Strategy, strategy
from jaxcl.heads import head_mask
from jaxcl.nn import inspection
from jaxcl.ops.decompositions import eigh
from jaxcl.ops.linalg import EXACT
from jaxcl.ops.sampling import batch_positions
from jaxcl.schema import Count, checked
from jaxcl.strategies._closed_form import head_layer
from jaxcl.types import Output, Setup, TaskData


class PCAState(NamedTuple):
    """The extractor: its features are (x − mean) components / scale."""

    mean: jax.Array  # float32[d]
    components: jax.Array  # float32[d, D], orthonormal, of largest variance first
    scale: jax.Array  # float32[], so that the features' mean variance is 1
    ready: jax.Array  # bool[] whether they have been found


@checked
def pca(setup: Setup, *, chunk: Count = 512) -> Strategy:
    """Replaces the extractor by the principal components of the first task's inputs.

    f(x) = (x − m) V / s, with m and Σ the inputs' mean and covariance, V [d, D] the
    eigenvectors of Σ's D largest eigenvalues λ and s² = Σ_k λ_k / D. D is the number of
    features that the classifier reads. Only the classifier trains, on f(x).

    Args:
      setup: the run's `Setup`; its classifier is one dense layer, which reads no more
        numbers than an input has.
      chunk: examples at once, in the pass over the first task's data.

    Returns:
      A `Strategy` with a `PCAState`. The components are found when the first task
      begins, in ``before_task``, and are in the state from its first step on.

    Raises:
      ValueError: an argument out of range; a classifier it cannot read, by name; in
        training, no cache of ``before_task``.
    """
    layer = head_layer(setup, "pca")
    d = 1
    for size in setup.example.shape[1:]:
        d *= size
    if layer.d_in > d:
        raise ValueError(
            f"pca: layer {layer.name!r} reads {layer.d_in} features, more than the "
            f"{d} numbers of an input"
        )

    def init(params):
        zero = jnp.zeros((d, layer.d_in))
        return PCAState(jnp.zeros(d), zero, jnp.ones(()), jnp.zeros((), bool))

    def before_task(params, state, *, data, model_state, task):
        return jax.lax.cond(
            state.ready,
            lambda: state,
            lambda: components(data, d, layer.d_in, chunk),
        )

    def found(state, ctx):
        if ctx.cache == ():  # in evaluation
            return state
        return jax.lax.cond(state.ready, lambda: state, lambda: ctx.cache)

    def forward(apply_fn, state, aux, *, ctx):
        now = found(state, ctx)

        def apply(net, model_state, x, task, key, train):
            y = jnp.matmul(x.reshape(len(x), -1) - now.mean, now.components)
            y = y / now.scale
            logits = inspection.layer_output(layer, net, y)
            return Output(logits, model_state, {layer.name: y})

        return apply

    def updates(updates, state, params, *, grads, ctx, out):
        is_head = head_mask(setup, updates.net)
        net = jax.tree.map(
            lambda u, h: u if h else jnp.zeros_like(u), updates.net, is_head
        )
        return updates._replace(net=net), state

    def grads(grads, state, params, *, ctx, out):
        require(len(ctx.cache), "pca needs the cache that jaxcl.before_task makes")
        # From the first step on the state holds the cache's values, for evaluation.
        return grads, found(state, ctx)

    return strategy(
        init=init,
        before_task=before_task,
        forward=forward,
        grads=grads,
        updates=updates,
    )


def components(data: TaskData, d: int, width: int, chunk: int) -> PCAState:
    """The principal components of a task's inputs, in two passes over them.

    Args:
      data: the task's examples.
      d: how many numbers an input has.
      width: how many components.
      chunk: examples at once.
    """
    size = min(chunk, data.capacity)
    bound = (data.size + size - 1) // size
    order = jnp.arange(data.capacity)

    def chunk_of(i):
        position, weight = batch_positions(order, i, size, data.size)
        x = data.take(position).x.reshape(size, d)
        return x * weight[:, None], weight

    def add(i, total):
        return total + chunk_of(i)[0].sum(0)

    mean = jax.lax.fori_loop(0, bound, add, jnp.zeros(d)) / data.size

    def scatter(i, total):
        x, weight = chunk_of(i)
        away = x - mean * weight[:, None]
        return total + jnp.matmul(away.T, away, precision=EXACT)

    covariance = jax.lax.fori_loop(0, bound, scatter, jnp.zeros((d, d))) / data.size
    values, vectors = eigh(covariance)
    scale = jnp.sqrt(jnp.maximum(values[-width:].mean(), 1e-12))
    return PCAState(mean, vectors[:, ::-1][:, :width], scale, jnp.ones((), bool))
