"""Which layers a projecting method treats, and what it refuses to leave untreated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcl.heads import shares_all_outputs, shares_an_output
from jaxcl.nn import inspection
from jaxcl.ops.trees import leaf_names, starts_with
from jaxcl.types import LayerSpec, PyTree, Setup


def choose_layers(
    setup: Setup, method: str, project_head: bool | None
) -> tuple[tuple[LayerSpec, ...], tuple[tuple[str, ...], ...]]:
    """The layers to project, and the heads that train freely instead.

    Args:
      setup: the run's `Setup`.
      method: for messages.
      project_head: None projects the classifier unless each output is trained in one
        task alone: class-incremental, a later task's softmax is over earlier classes.

    Returns:
      The layers, in order, and path prefixes of the free heads.

    Raises:
      ValueError: there is no layer, or one cannot be treated; the message names it.
    """
    if project_head is None:
        project_head = shares_an_output(setup) or shares_all_outputs(setup)
    free = () if project_head else setup.heads
    layers = tuple(la for la in setup.layers if not starts_with(la.path, free))
    if not layers:
        raise ValueError(
            f"{method} needs setup.layers to name what to project, got (): give "
            "setup_for the parameters, net=, and compute the layers of a plain "
            "function by jaxcl.nn.dense and conv"
        )
    inspection.require_treatable(layers, method)
    return layers, free


def require_known(setup: Setup, net: PyTree, method: str) -> None:
    """Refuses weights of no layer that is known, which nothing would project.

    Vectors are taken for biases and scales; they stand still, as the method says.

    Raises:
      ValueError: the message names such weights.
    """
    kernels = {layer.path for layer in setup.layers}
    modules = [path[:-1] for path in kernels if len(path) > 1]
    modules += [*(norm.path for norm in setup.norms), *setup.heads]
    unknown = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(net):
        names = leaf_names(path)
        known = names in kernels or starts_with(names, modules)
        if not known and np.ndim(leaf) > 1:
            unknown.append("/".join(names))
    if unknown:
        raise ValueError(
            f"{method} knows no layer that {', '.join(map(repr, unknown))} belongs to, "
            "and would leave it as it is: use dense and convolutional layers, or "
            "compute its product by jaxcl.nn.dense or conv"
        )


def per_layer(
    method: str, name: str, value: Any, layers: Sequence[LayerSpec]
) -> dict[str, Any]:
    """A number for all layers, or a sequence with one per layer, by layer name.

    Raises:
      ValueError: a sequence has another length.
    """
    values = [value] * len(layers) if np.ndim(value) == 0 else list(value)
    if len(values) != len(layers):
        names = ", ".join(layer.name for layer in layers)
        raise ValueError(
            f"{method}: {name} {value} has {len(values)} entries for {len(layers)} "
            f"projected layers ({names})"
        )
    return {layer.name: v for layer, v in zip(layers, values, strict=True)}


def require_taps(layers: Sequence[LayerSpec], taps: Mapping[str, Any], method: str):
    """Refuses a model that does not give the input of each layer as a tap.

    Raises:
      ValueError: a layer's input is missing; the message names the layer.
    """
    missing = [layer.name for layer in layers if layer.name not in taps]
    if missing:
        raise ValueError(
            f"{method} has to see the input of layer {', '.join(map(repr, missing))}, "
            f"the model tells that of {', '.join(map(repr, taps)) or 'none'}: compute "
            "it by jaxcl.nn.dense or conv, under that name"
        )
