"""BP**: the feature extractor is frozen after the first task, only heads train on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.ops.linalg import tree_where
from jaxcl.types import Params, PyTree, Setup, Strategy, strategy


def head_mask(setup: Setup, net: PyTree) -> PyTree:
    """A tree like ``net``, True where a leaf belongs to the classifier."""

    def is_head(path, _):
        keys = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return any(keys[: len(h)] == h for h in setup.heads)

    return jax.tree_util.tree_map_with_path(is_head, net)


def frozen(setup: Setup) -> Strategy:
    """Freezes everything before the classifier once task 1 is learned.

    Δθ_extractor = 0 for every task after the first, and so do normalisation statistics
    stand still. *Updates* are masked, not gradients: momentum and weight decay move a
    weight whose gradient is zero.

    Args:
      setup: ``setup.heads`` tells the classifier's leaves from the extractor's.

    Returns:
      A `Strategy` with state ``()``.

    Raises:
      ValueError: ``setup.heads`` is empty, so that nothing would ever train again.
    """
    if not setup.heads:
        raise ValueError("frozen needs setup.heads to name the classifier, got ()")

    def updates(state, u, grads, params, ctx, out):
        first = ctx.task == 0

        def mask(update, is_head):
            return update if is_head else jnp.where(first, update, 0)

        net = jax.tree.map(mask, u.net, head_mask(setup, u.net))
        return Params(net, u.aux), state

    def model_state(state, old, new, ctx):
        return tree_where(ctx.task == 0, new, old)

    return strategy(updates=updates, model_state=model_state)
