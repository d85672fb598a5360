"""Makes an Equinox model into a pure function that also returns each layer's input.

The model takes one example and is vmapped. Its Linear and Conv modules are replaced
by modules that compute through the primitive of `jaxcl.nn.tagged`, which handles them
outside the vmap, with the whole batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import equinox as eqx
import jax

from jaxcl.nn import tagged, treatment
from jaxcl.nn.capture import conv_padding
from jaxcl.nn.products import Tag, own_way
from jaxcl.ops.trees import leaf_names
from jaxcl.types import ApplyFn, Output, PyTree

_NORMS = (eqx.nn.GroupNorm, eqx.nn.LayerNorm, eqx.nn.RMSNorm)


class _Linear(eqx.Module):
    """Replaces a Linear in a model; computes through the primitive."""

    inner: eqx.nn.Linear
    tag: Tag = eqx.field(static=True)

    def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
        if self.tag.refusal:
            return _as_it_is(self, x)
        return tagged.call(self.tag, x, self.inner.weight, self.inner.bias)


class _Conv(eqx.Module):
    """Replaces a Conv in a model; computes through the primitive."""

    inner: eqx.nn.Conv
    tag: Tag = eqx.field(static=True)

    def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
        if self.tag.refusal:
            return _as_it_is(self, x)
        return tagged.call(self.tag, x, self.inner.weight, self.inner.bias)


def _as_it_is(layer: _Linear | _Conv, x: jax.Array) -> jax.Array:
    """Seen only inside vmap, and so listed as a layer that cannot be treated."""
    inner = layer.inner
    return tagged.call(layer.tag, x, inner.weight, None, plain=lambda: inner(x))


def split(model: eqx.Module) -> PyTree:
    """The parameters of a model: a tree like it, with None for all that is not trained.

    Functions, None and numbers among its leaves stay in the model given to `apply_fn`.
    ``eqx.combine(net, model)`` puts parameters back.
    """
    return eqx.filter(model, eqx.is_inexact_array)


def apply_fn(model: eqx.Module) -> ApplyFn:
    """Makes the pure ``(net, model_state, x, task, key, train) -> Output`` of a model.

    Args:
      model: called as ``model(x)`` with x one example, or as ``model(x, key=key)`` with
        a key of its own for each example. In evaluation the model is in inference mode.

    Returns:
      The apply function, for batches x [B, ...].

    Raises:
      ValueError: the model has `equinox.nn.State`, as `equinox.nn.BatchNorm` does: its
        statistics would not be carried.
    """
    _require_stateless(model)
    draws = _takes_key(model)

    def apply(net, model_state, x, task, key, train) -> Output:
        whole = eqx.combine(net, model)
        ready = _tag_layers(eqx.nn.inference_mode(whole, value=not train))
        with treatment.capturing() as capture:
            if draws:
                keys = jax.random.split(key, x.shape[0])
                logits = jax.vmap(lambda x, k: ready(x, key=k))(x, keys)
            else:
                logits = jax.vmap(ready)(x)
        return Output(logits, model_state, capture.taps)

    return apply


def _takes_key(model: Any) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters.values()
    return any(p.name == "key" or p.kind is p.VAR_KEYWORD for p in parameters)


def _require_stateless(model: eqx.Module) -> None:
    for path, node in _nodes(model, (eqx.nn.StateIndex,)):
        if isinstance(node, eqx.nn.StateIndex):
            raise ValueError(
                f"{type(model).__name__} keeps state at {'/'.join(path)!r} "
                "(equinox.nn.State), which is not carried: use a normalisation without "
                "running statistics, such as equinox.nn.GroupNorm"
            )


def _nodes(model: Any, extra: tuple[type, ...] = ()) -> list[tuple]:
    kinds = (eqx.nn.Linear, eqx.nn.Conv, *_NORMS, *extra)
    found = jax.tree_util.tree_leaves_with_path(
        model, is_leaf=lambda node: isinstance(node, kinds)
    )
    return [(leaf_names(path), node) for path, node in found]


def _tag_layers(model: Any) -> Any:
    """The model with its layers replaced by tagged ones."""

    def one(path, node):
        names = leaf_names(path)
        if isinstance(node, eqx.nn.Linear):
            return _linear(node, names)
        if isinstance(node, eqx.nn.Conv):
            return _Conv(node, _tag(node, names))
        return node

    kinds = (eqx.nn.Linear, eqx.nn.Conv)
    return jax.tree_util.tree_map_with_path(
        one, model, is_leaf=lambda node: isinstance(node, kinds)
    )


def _linear(node: eqx.nn.Linear, path: tuple[str, ...]) -> Any:
    if "scalar" in (node.in_features, node.out_features):
        return node
    own = own_way(node, (eqx.nn.Linear,))
    return _Linear(node, Tag("/".join(path), "dense", 0, refusal=own))


def _tag(node: eqx.nn.Conv, path: tuple[str, ...]) -> Tag:
    padding, refusal = conv_padding(
        node.padding if node.padding_mode == "ZEROS" else node.padding_mode,
        axes=node.num_spatial_dims,
        groups=node.groups,
        dilated=any(d != 1 for d in node.dilation),
    )
    refusal = refusal or own_way(node, (eqx.nn.Conv,))
    return Tag("/".join(path), "conv", 0, tuple(node.stride), padding, refusal=refusal)
