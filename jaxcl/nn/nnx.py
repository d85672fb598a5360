"""Makes a Flax NNX model into pure functions that also return each layer's input.

A model is rebuilt for each forward pass; there its Linear and Conv modules are changed
to compute through the primitive of `jaxcl.nn.tagged`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from jaxcl.checks import require_statistics
from jaxcl.nn import calling, tagged, treatment
from jaxcl.nn.capture import conv_padding, pair
from jaxcl.nn.products import Tag, own_way
from jaxcl.ops.trees import is_key
from jaxcl.types import ApplyFn, Output, PyTree

LAYERS = (nnx.Linear, nnx.Conv)
_NORMS = (
    (nnx.BatchNorm, "batch"),
    (nnx.GroupNorm, "group"),
    ((nnx.LayerNorm, nnx.RMSNorm), "layer"),
)


def split(model: nnx.Module) -> tuple[PyTree, PyTree]:
    """The parameters and the state of a model, as plain dicts.

    Args:
      model: an `nnx.Module`.

    Returns:
      Its `nnx.Param`s, which the optimizer trains, and all other variables, such as
      running statistics (`nnx.BatchStat`), except random keys and counts: dropout draws
      from the key of each step. ``nnx.update(model, net)`` puts parameters back.
    """
    _, net, _, state = nnx.split(model, nnx.Param, nnx.RngState, ...)
    return nnx.to_pure_dict(net), nnx.to_pure_dict(state)


def apply_fn(model: nnx.Module) -> ApplyFn:
    """Makes the pure ``(net, model_state, x, task, key, train) -> Output`` of a model.

    Args:
      model: an `nnx.Module` called as ``model(x)`` with x [B, ...], with ``task`` and
        ``train`` or ``deterministic`` if it takes them; see
        `jaxcl.nn.calling.arguments`. Modules with a training mode are put into it
        (`nnx.Module.set_attributes`: deterministic, use_running_average).

    Returns:
      The apply function; ``key`` feeds every random stream of the model.
    """
    graph, net_like, rng, state_like = nnx.split(model, nnx.Param, nnx.RngState, ...)
    arguments = calling.arguments(model, "NNX")

    def apply(net, model_state, x, task, key, train) -> Output:
        require_statistics(nnx.to_pure_dict(state_like), model_state)
        put_back = nnx.merge(
            graph,
            _like(net_like, net),
            _rngs(rng, key),
            _like(state_like, model_state),
        )
        mode = {"deterministic": not train, "use_running_average": not train}
        for name, value in mode.items():
            put_back.set_attributes(**{name: value}, raise_if_not_found=False)
        _tag_layers(put_back)
        with treatment.capturing() as capture:
            args, kwargs = arguments(task, train)
            logits = put_back(x, *args, **kwargs)
        new = model_state
        if train:
            *_, state = nnx.split(put_back, nnx.Param, nnx.RngState, ...)[1:]
            new = nnx.to_pure_dict(state)
        return Output(logits, new, capture.taps)

    return apply


def _like(state: nnx.State, values: PyTree) -> nnx.State:
    """A state with new values, given as a plain dict."""
    new = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(new, values)
    return new


def _rngs(state: nnx.State, key: jax.Array) -> nnx.State:
    """Restarts every random stream, each from its own key folded from a step's."""
    leaves, tree = jax.tree.flatten(state)
    new = []
    for i, leaf in enumerate(leaves):
        if is_key(leaf):
            mine = jax.random.fold_in(key, i)
            new.append(jnp.broadcast_to(mine, leaf.shape))
        else:
            new.append(jnp.zeros_like(leaf))
    return jax.tree.unflatten(tree, new)


def _tag_layers(model: nnx.Module) -> None:
    """Changes a model so that its layers and normalisations call the capture."""
    seen: dict[int, tuple[str, ...]] = {}
    for path, module in nnx.iter_graph(model):
        names = tuple(map(str, path))
        kind = next((k for types, k in _NORMS if isinstance(module, types)), None)
        if isinstance(module, LAYERS):
            # A kernel shared by several modules has the path in the first one.
            kernel = seen.setdefault(id(module.kernel), (*names, "kernel"))
            _become(module, "layer", _layer_call(_tag(module, names, kernel)))
        elif kind is not None:
            _become(module, "norm", _norm_call("/".join(names), kind, names))


def _become(module: Any, what: str, how: Any) -> None:
    # Not assigned as an NNX attribute: it must not become part of the graph.
    object.__setattr__(module, "_jaxcl_call", how)
    object.__setattr__(module, "__class__", _tagged_class(type(module), what))


@functools.cache
def _tagged_class(base: type, what: str) -> type:
    def __call__(self, x, *args, **kwargs):
        plain = functools.partial(base.__call__, self, x, *args, **kwargs)
        return self._jaxcl_call(self, x, plain)

    return type(f"Tagged{base.__name__}", (base,), {"__call__": __call__})


def _layer_call(tag: Tag):
    def call(module, x, plain):
        bias = None if module.bias is None else module.bias[...]
        arrays = (x, module.kernel[...], bias)

        def cast(*arrays):
            return promote_dtype(arrays, dtype=module.dtype)

        def compute():
            return tagged.computed(tag, module, arrays, plain, cast)

        return tagged.call(tag, *arrays, plain=compute, cast=cast)

    return call


def _norm_call(name: str, kind: str, path: tuple[str, ...]):
    def call(module, x, plain):
        y, capture = plain(), treatment.active()
        if capture is None or not capture.is_here():
            return y
        return capture.normalise(name, kind, path, x, y)

    return call


def _tag(module: Any, path: tuple[str, ...], kernel: tuple[str, ...]) -> Tag:
    name = "/".join(path)
    own = own_way(module, LAYERS)
    if isinstance(module, nnx.Linear):
        return Tag(name, "dense", path=kernel, refusal=own)
    padding, refusal = conv_padding(
        module.padding,
        axes=len(pair(module.kernel_size)),
        groups=module.feature_group_count,
        dilated=pair(module.kernel_dilation) != (1, 1)
        or pair(module.input_dilation) != (1, 1),
    )
    return Tag(name, "conv", -1, pair(module.strides), padding, kernel, refusal or own)
