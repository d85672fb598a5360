"""Builds an optimizer from its name in a config."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxcl.checks import called, imported
from jaxcl.ops.trees import tree_dot

OPTIMIZERS = ("sgd", "adam", "adamw")


def make_optimizer(
    name: str,
    lr: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Chains clipping by the global norm, weight decay, and the optimizer itself.

    Args:
      name: one of `OPTIMIZERS`, or the import path "package.module:factory" of a
        function that is called with the learning rate.
      lr: learning rate.
      momentum: for "sgd"; 0 is plain SGD.
      nesterov: for "sgd" with momentum.
      weight_decay: λ; λθ is added to the gradient, for "adamw" to its update.
      clip: the largest global norm of a gradient, or None.

    Raises:
      ValueError: an unknown name, a setting of another optimizer, or a factory that
        raises or returns something else.
    """
    outside = ":" in name
    if name not in OPTIMIZERS and not outside:
        raise ValueError(
            f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}, or an "
            "import path 'package.module:factory' called with the learning rate"
        )
    if momentum and name != "sgd":
        raise ValueError(f"optimizer.momentum is for sgd, not {name}")
    if nesterov and not momentum:
        raise ValueError(
            f"optimizer.nesterov needs optimizer.momentum above 0, got {momentum}"
        )
    clipped = [] if clip is None else [_clip(clip)]
    if name == "adamw":
        core = [optax.adamw(lr, weight_decay=weight_decay)]
    else:
        core = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
        if outside:
            core.append(_from_elsewhere(name, lr))
        elif name == "adam":
            core.append(optax.adam(lr))
        else:
            core.append(optax.sgd(lr, momentum or None, nesterov=nesterov))
    return optax.chain(*clipped, *core)


def _clip(most: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, with a norm that costs a CPU less.

    g ← g · most / ‖g‖ where ‖g‖ is not below it.
    """

    def update(updates, state, params=None):
        norm = jnp.sqrt(tree_dot(updates, updates))
        below = norm < most

        def clipped(g):
            return jnp.where(below, g, (g / norm.astype(g.dtype)) * most)

        return jax.tree.map(clipped, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _from_elsewhere(path: str, lr: float) -> optax.GradientTransformation:
    """Calls a user's factory with the learning rate."""
    made = called(path, imported(path, "optimizer"), lr)
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(
            f"{path!r} must make a GradientTransformation, it made {made!r}"
        )
    return made
