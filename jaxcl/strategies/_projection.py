"""Projection inside a layer's backward pass, where it costs least.

The gradient of a layer's kernel is Xᵀ dY. Projecting it costs d² n_out, projecting the
N rows of X costs N d² and gives the same: for 2048 → 2048 and a batch of 64, 32 times
less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxcl.nn import capture
from jaxcl.nn.products import Tag, is_channels_first, product
from jaxcl.ops import convolution
from jaxcl.ops.linalg import EXACT
from jaxcl.ops.trees import leaf_names, starts_with, summed_like
from jaxcl.schema import OneOf
from jaxcl.types import ApplyFn, LayerSpec, PyTree, Setup

Form = Annotated[str, OneOf(("auto", "gradient"))]
Where = Annotated[str, OneOf(("grads", "updates"))]


def input_is_cheaper(setup: Setup, layer: LayerSpec) -> bool:
    """Whether a batch gives the layer fewer rows than it has outputs."""
    return setup.example.shape[0] * layer.positions < layer.n_out


def can_project_inputs(layer: LayerSpec) -> bool:
    """Whether a layer's gradient stays projected when its input was.

    A gradient has its kernel's dtype; in bfloat16 it is rounded after the projection,
    and the rounding is not projected.
    """
    return jnp.finfo(layer.dtype).bits >= 32


def on_kernels(
    net: PyTree, layers: Sequence[LayerSpec], given: dict[str, jax.Array]
) -> PyTree:
    """A tree like ``net`` with a layer's array at its kernel, and None elsewhere.

    Args:
      net: a tree like the network's parameters.
      layers: the layers that ``given`` is about.
      given: layer name -> array; layers that are not in it have None.

    Returns:
      The tree that `jaxcl.transforms.project_out` and `project_onto` take.
    """
    by_path = {layer.path: given.get(layer.name) for layer in layers}
    return jax.tree_util.tree_map_with_path(
        lambda p, _: by_path.get(leaf_names(p)), net
    )


def output_axes(net: PyTree, layers: Sequence[LayerSpec]) -> PyTree:
    """A tree like ``net`` with the axis over the outputs of each layer's kernel."""
    by_path = {layer.path: layer.axis for layer in layers}
    return jax.tree_util.tree_map_with_path(
        lambda p, _: by_path.get(leaf_names(p), -1), net
    )


def map_rest(
    net: PyTree,
    layers: Sequence[LayerSpec],
    free: Sequence[tuple[str, ...]],
    fn: Callable[[jax.Array], jax.Array],
) -> PyTree:
    """Maps biases, normalisation and all other leaves except kernels and heads.

    Args:
      net: a tree like the network's parameters.
      layers: the layers whose kernels stay unchanged.
      free: path prefixes of the heads, which stay unchanged.
      fn: applied to every other leaf.
    """
    left = {layer.path for layer in layers}

    def one(path, leaf):
        names = leaf_names(path)
        return leaf if names in left or starts_with(names, free) else fn(leaf)

    return jax.tree_util.tree_map_with_path(one, net)


def kernels(net: PyTree, layers: Sequence[LayerSpec]) -> list[jax.Array]:
    """The kernels of some layers, in the order of the tree."""
    wanted = {layer.path for layer in layers}
    leaves = jax.tree_util.tree_leaves_with_path(net)
    return [leaf for path, leaf in leaves if leaf_names(path) in wanted]


def rows(spec: LayerSpec, x: jax.Array, window_stride: int = 1) -> jax.Array:
    """A layer's input as the rows that its kernel, as a matrix, multiplies.

    Args:
      spec: the layer.
      x: its input as tapped: [..., D], or [B, H, W, C] for a convolution; [B, C, H, W]
        for one whose kernel is OIHW.
      window_stride: n ≥ 1; takes every n-th of a convolution's windows along either
        axis, from the first.

    Returns:
      [N, d_in]: a row per example, for a convolution a row per window, in float32 at
      least. A window's features are in the order of the kernel's.
    """
    if spec.kind == "conv":
        first = is_channels_first(spec)
        x = x.transpose(0, 2, 3, 1) if first else x
        x = convolution.patches(x, spec.window, spec.strides, spec.padding)
        x = x[:, ::window_stride, ::window_stride]
        if first:  # (kh, kw, C) to (C, kh, kw)
            x = x.reshape(*x.shape[:3], spec.window[0] * spec.window[1], -1)
            x = x.swapaxes(-1, -2)
        x = x.reshape(-1, spec.d_in)
    x = x.reshape(-1, x.shape[-1])
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def project_inputs(
    apply_fn: ApplyFn,
    layers: Sequence[LayerSpec],
    project: Callable[[LayerSpec, jax.Array], jax.Array],
) -> ApplyFn:
    """Replaces the input in a layer's kernel gradient; values and dX stay unchanged.

    dK = project(X)ᵀ dY instead of Xᵀ dY, with X the layer's input rows. For
    project(X) = X − X M that is dK − M dK. A gradient that does not come through the
    layer, such as that of a penalty on weights, is not projected.

    Args:
      apply_fn: an adapter's, or a plain function's; see `capture.swap_layers`.
      layers: the layers to treat.
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
    tag = Tag(spec.name, spec.kind, spec.axis, spec.strides, spec.padding)
    return product(tag, x, kernel, None)


def _layer_fwd(spec, x, kernel, given):
    return _layer(spec, x, kernel, given), (x, kernel, given)


def _layer_bwd(spec, residuals, dy):
    x, kernel, given = residuals
    first = is_channels_first(spec)
    if first:
        x, dy = x.transpose(0, 2, 3, 1), dy.transpose(0, 2, 3, 1)
    if spec.kind == "conv":
        hwio = kernel.transpose(2, 3, 1, 0) if first else kernel
        dx = convolution.input_gradient(x, hwio, dy, spec.strides, spec.padding)
        dx = dx.transpose(0, 3, 1, 2) if first else dx
    else:
        dx = dy @ (kernel if spec.axis == 0 else kernel.T)
    # Rounded operands would bring back a part of what was projected out.
    dk = jnp.matmul(given.T, dy.reshape(-1, dy.shape[-1]), precision=EXACT)
    dk = dk.T if spec.axis == 0 else dk
    dk = dk.reshape(kernel.shape).astype(kernel.dtype)
    return summed_like(dx, x), summed_like(dk, kernel), jnp.zeros_like(given)


_layer.defvjp(_layer_fwd, _layer_bwd)
