"""Sums over examples of a function of each one's gradient: squares, absolute values.

For example b, a dense layer has the gradient a_b δ_bᵀ, with a its input and δ the
gradient with respect to its output. Its squares are those of a times those of δ, and
their sum over a batch is one product, (a²)ᵀ δ². A convolution's gradient is a sum over
its windows, computed per example from the windows and δ. So one backward pass through
the batch replaces one pass per example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.nn.by_example import outputs_by_example
from jaxcl.nn.products import is_channels_first
from jaxcl.nn.treatment import shifted
from jaxcl.ops.linalg import EXACT
from jaxcl.ops.trees import leaf_names, wide
from jaxcl.strategies._projection import rows
from jaxcl.types import ApplyFn, Batch, LayerSpec, PyTree, Setup

Sums = Callable[[jax.Array, jax.Array], PyTree]
"""``(cotangents float[B, K], weight float[B]) -> tree like net``"""
Path = tuple[str, ...]


class Pass(NamedTuple):
    """A batch's forward pass, and the backward pass from its logits."""

    logits: jax.Array  # float32[B, K], not masked
    sums: Sums  # Σ_b weight_b h(g_b), g_b = Σ_k cotangent_bk ∂logit_bk/∂θ


def make_pass(
    setup: Setup,
    apply_fn: ApplyFn,
    net: PyTree,
    model_state: PyTree,
    key: jax.Array,
    h: Callable[[jax.Array], jax.Array],
) -> Callable[[Batch], Pass]:
    """Builds ``batch -> Pass`` of a network in evaluation mode.

    Args:
      setup: names the layers whose gradients are products. All other gradients are
        taken per example; so are all, if an example's logits depend on its batch.
      apply_fn: ``setup.apply_fn``, wrapped or not.
      net: parameters.
      model_state: running statistics.
      key: for the network's call; in evaluation it draws nothing.
      h: applied to each number, with h(uv) = h(u) h(v): square or absolute value.
    """

    def logits_of(net, x, task, f=apply_fn):
        return wide(f(net, model_state, x, task, key, False).logits)

    def run(batch: Batch) -> Pass:
        if setup.mixes_examples:
            return _within(batch)
        of = (net, model_state, batch.x, batch.task, key)
        met = outputs_by_example(apply_fn, *of)
        layers = [
            layer for layer in setup.layers if layer.name in met and not layer.refusal
        ]
        zeros = {
            la.name: jnp.zeros(met[la.name].shape, met[la.name].dtype) for la in layers
        }

        def forward(shifts):
            f = shifted(apply_fn, shifts)
            out = f(net, model_state, batch.x, batch.task, key, False)
            return wide(out.logits), out.taps

        logits, back, taps = jax.vjp(forward, zeros, has_aux=True)

        def sums(cotangents, weight):
            (delta,) = back(cotangents)
            made: dict[Path, jax.Array] = {}
            for layer in layers:
                made |= _of_layer(layer, taps[layer.name], delta[layer.name], weight, h)
            return _with_rest(net, made, batch, cotangents, weight)

        return Pass(logits, sums)

    def _with_rest(net, made, batch, cotangents, weight):
        """Adds to the layers' sums those of other leaves, by a pass per example."""
        leaves, form = jax.tree_util.tree_flatten_with_path(net)
        at = [i for i, (path, _) in enumerate(leaves) if leaf_names(path) not in made]

        def one(rest, x, task, cotangent):
            whole = [leaf for _, leaf in leaves]
            for i, leaf in zip(at, rest, strict=True):
                whole[i] = leaf
            logits = logits_of(form.unflatten(whole), x[None], task[None])
            return jnp.vdot(logits[0], cotangent)

        g = []
        if at:
            rest = [leaves[i][1] for i in at]
            each = jax.vmap(jax.grad(one), (None, 0, 0, 0))
            g = each(rest, batch.x, batch.task, cotangents)
        others = dict(zip(at, (_weighted(h, a, weight) for a in g), strict=True))

        def of(i, path, leaf):
            found = others[i] if i in others else made[leaf_names(path)]
            return found.reshape(leaf.shape).astype(wide(leaf).dtype)

        return form.unflatten([of(i, *pair) for i, pair in enumerate(leaves)])

    def _within(batch):
        """Differentiates each example within its batch, on which its output depends."""

        def sums(cotangents, weight):
            def each(net):
                return jnp.sum(logits_of(net, batch.x, batch.task) * cotangents, -1)

            g = jax.jacrev(each)(net)
            return jax.tree.map(
                lambda a, leaf: _weighted(h, a, weight).astype(wide(leaf).dtype), g, net
            )

        return Pass(logits_of(net, batch.x, batch.task), sums)

    return run


def _of_layer(
    layer: LayerSpec, x: jax.Array, delta: jax.Array, weight: jax.Array, h: Callable
) -> dict[Path, jax.Array]:
    """Σ_b weight_b h(g_b) of a layer's kernel and bias, in the kernel's order."""
    b = len(weight)
    delta = delta.transpose(0, 2, 3, 1) if is_channels_first(layer) else delta
    delta = wide(delta).reshape(b, -1, layer.n_out)
    x = rows(layer, x).reshape(b, -1, layer.d_in)
    if x.shape[1] == 1:
        scaled = h(delta[:, 0]) * weight[:, None]
        kernel = jnp.matmul(h(x[:, 0]).T, scaled, precision=EXACT)
    else:
        g = jnp.einsum("bpd,bpn->bdn", x, delta, precision=EXACT)
        kernel = _weighted(h, g, weight)
    made = {layer.path: kernel.T if layer.axis == 0 else kernel}
    if layer.bias:
        made[layer.path_of_bias] = _weighted(h, delta.sum(1), weight)
    return made


def _weighted(h: Callable, g: jax.Array, weight: jax.Array) -> jax.Array:
    """Σ_b weight_b h(g_b)."""
    return jnp.einsum("b...,b->...", h(wide(g)), weight)
