"""Projection inside a layer's backward pass, where it costs least.

The gradient of a layer's kernel is Xᵀ dY. Projecting it costs d² n_out, projecting the
N rows of X costs N d² and gives the same: for 2048 → 2048 and a batch of 64, 32 times
less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.nn import capture, inspection
from jaxcl.ops import convolution
from jaxcl.ops.linalg import EXACT
from jaxcl.types import ApplyFn, LayerSpec, PyTree, Setup

FORMS = ("auto", "gradient")
WHERES = ("grads", "updates")


def choose_layers(
    setup: Setup, method: str, project_head: bool | None
) -> tuple[tuple[LayerSpec, ...], tuple[tuple[str, ...], ...]]:
    """The layers to project, and the heads that train freely instead.

    Args:
      setup: the run's `Setup`.
      method: for messages.
      project_head: None projects the classifier if all tasks share all its outputs.

    Returns:
      The layers, in order, and path prefixes of the free heads.

    Raises:
      ValueError: no layer, or one that cannot be treated, by name.
    """
    if project_head is None:
        project_head = bool(np.asarray(setup.logit_mask).all())
    free = () if project_head else setup.heads
    layers = tuple(la for la in setup.layers if not _starts(la.path, free))
    if not layers:
        raise ValueError(f"{method} needs setup.layers to name what to project, got ()")
    inspection.require_treatable(layers, method)
    return layers, free


def per_layer(
    method: str, name: str, value: Any, layers: Sequence[LayerSpec]
) -> dict[str, Any]:
    """A number for all layers, or a sequence with one per layer, by layer name.

    Raises:
      ValueError: a sequence of another length.
    """
    values = [value] * len(layers) if np.ndim(value) == 0 else list(value)
    if len(values) != len(layers):
        names = ", ".join(layer.name for layer in layers)
        raise ValueError(
            f"{method}: {name} {value} has {len(values)} entries for {len(layers)} "
            f"projected layers ({names})"
        )
    return {layer.name: v for layer, v in zip(layers, values, strict=True)}


def check_choice(method: str, name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError unless a setting is one of those allowed."""
    if value not in allowed:
        raise ValueError(
            f"{method}: {name} must be one of {', '.join(allowed)}, got {value!r}"
        )


def input_is_cheaper(setup: Setup, layer: LayerSpec) -> bool:
    """Whether a batch gives the layer fewer rows than it has outputs."""
    return setup.example.shape[0] * layer.positions < layer.n_out


def on_kernels(
    net: PyTree, layers: Sequence[LayerSpec], given: dict[str, jax.Array]
) -> PyTree:
    """A tree like ``net`` with a layer's array at its kernel, and None elsewhere.

    Args:
      net: a tree like the network's parameters.
      layers: the layers that ``given`` is about.
      given: layer name -> array; layers that are not in it have None.

    Returns:
      What `jaxcl.transforms.project_out` and `project_onto` take.
    """
    by_path = {layer.path: given.get(layer.name) for layer in layers}
    return jax.tree_util.tree_map_with_path(lambda p, _: by_path.get(_names(p)), net)


def map_rest(
    net: PyTree,
    layers: Sequence[LayerSpec],
    free: Sequence[tuple[str, ...]],
    fn: Callable[[jax.Array], jax.Array],
) -> PyTree:
    """Maps the biases, normalisation and whatever else is no kernel and in no head.

    Args:
      net: a tree like the network's parameters.
      layers: whose kernels are left as they are.
      free: path prefixes of the heads, which are left as they are.
      fn: of every other leaf.
    """
    left = {layer.path for layer in layers}

    def one(path, leaf):
        names = _names(path)
        return leaf if names in left or _starts(names, free) else fn(leaf)

    return jax.tree_util.tree_map_with_path(one, net)


def kernels(net: PyTree, layers: Sequence[LayerSpec]) -> list[jax.Array]:
    """The kernels of some layers, in the order of the tree."""
    wanted = {layer.path for layer in layers}
    leaves = jax.tree_util.tree_leaves_with_path(net)
    return [leaf for path, leaf in leaves if _names(path) in wanted]


def _names(path) -> tuple[str, ...]:
    return tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def _starts(path: tuple[str, ...], prefixes: Sequence[tuple[str, ...]]) -> bool:
    return any(path[: len(p)] == p for p in prefixes)


def rows(spec: LayerSpec, x: jax.Array, window_stride: int = 1) -> jax.Array:
    """A layer's input as the rows that its kernel, as a matrix, multiplies.

    Args:
      spec: the layer.
      x: its input as tapped: [..., D], or [B, H, W, C] for a convolution.
      window_stride: n ≥ 1: of a convolution's windows, every n-th along either axis,
        from the first.

    Returns:
      [N, d_in]: a row per example, for a convolution a row per window.
    """
    if spec.kind == "conv":
        x = convolution.patches(x, spec.window, spec.strides, spec.padding)
        x = x[:, ::window_stride, ::window_stride]
    return x.reshape(-1, x.shape[-1])


def project_inputs(
    apply_fn: ApplyFn,
    layers: Sequence[LayerSpec],
    project: Callable[[LayerSpec, jax.Array], jax.Array],
) -> ApplyFn:
    """Swaps what a layer's kernel gradient is made of; values and dX stay as they are.

    dK = project(X)ᵀ dY instead of Xᵀ dY, with X the layer's input rows. For
    project(X) = X − X M that is dK − M dK. What reaches a kernel other than through its
    layer, a penalty on weights, is not projected.

    Args:
      apply_fn: made by `capture.apply_fn` of a Linen model, wrapped or not.
      layers: those to treat.
      project: ``(layer, rows [N, d_in]) -> [N, d_in]``. Not differentiated.

    Returns:
      An apply function that does so with ``train=True``; evaluation is untouched.
    """

    def compute(spec, x, kernel):
        given = project(spec, jax.lax.stop_gradient(rows(spec, x)))
        return _layer(spec, x, kernel, given)

    return capture.swap_layers(apply_fn, layers, compute)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(spec: LayerSpec, x, kernel, given):
    """The layer's value; ``given`` [N, d_in] only takes part in dK."""
    if spec.kind == "conv":
        return convolution.convolve(x, kernel, spec.strides, spec.padding)
    return x @ kernel


def _layer_fwd(spec, x, kernel, given):
    return _layer(spec, x, kernel, given), (x, kernel, given)


def _layer_bwd(spec, residuals, dy):
    x, kernel, given = residuals
    if spec.kind == "conv":
        dx = convolution.input_gradient(x, kernel, dy, spec.strides, spec.padding)
    else:
        dx = dy @ kernel.T
    # Rounded operands would put back a part of what was projected out.
    dk = jnp.matmul(given.T, dy.reshape(-1, dy.shape[-1]), precision=EXACT)
    return dx, dk.reshape(kernel.shape), jnp.zeros_like(given)


_layer.defvjp(_layer_fwd, _layer_bwd)
