"""BP**: the feature extractor is frozen after the first task, only heads train on.

Or from the start, the control: what BP** has beyond it, task 1 taught its features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.contract import Strategy, strategy
from jaxcl.heads import head_mask
from jaxcl.schema import Natural, checked
from jaxcl.types import Setup


@checked
def frozen(setup: Setup, *, epochs: Natural | None = None) -> Strategy:
    """Freezes everything before the classifier once task 1 is learned.

    Δθ_extractor = 0 for every task after the first, and there the extractor runs in
    evaluation mode: with the normalisation statistics that the first task left and
    without dropout, in training too, so that a head is trained on the features that it
    is tested on. Where the network has parts for each task (``norm="batch_per_task"``),
    every task takes those of the first: the others have not been trained.

    *Updates* are masked, not gradients alone: weight decay moves a weight whose
    gradient is zero. The extractor's gradient is zero after the first task and not
    computed; a clip by the global norm sees the heads' alone.

    Args:
      setup: ``setup.heads`` tells the classifier's leaves from the extractor's.
      epochs: of the first task, after which the extractor is frozen already and only
        the head trains on; 0 freezes it as it was initialised, running statistics with
        it. None: all.

    Returns:
      A `Strategy` with state ``()``. In a chain it belongs before members that change
      the forward pass (GPM, OWM, HAT): those before it would be in evaluation mode too.

    Raises:
      ValueError: ``setup.heads`` is empty, so that nothing would ever train again;
        epochs below 0.
    """
    if not setup.heads:
        raise ValueError("frozen needs setup.heads to name the classifier, got ()")

    def learns(ctx):
        first = ctx.task == 0
        return first if epochs is None else first & (ctx.epoch < epochs)

    def forward(apply_fn, state, aux, *, ctx):
        def apply(net, model_state, x, task, key, train):
            first = jnp.zeros_like(task)

            def learn(net):
                return apply_fn(net, model_state, x, first, key, True)

            def keep(net):
                return apply_fn(net, model_state, x, first, key, False)

            def train_heads(net):
                is_head = head_mask(setup, net)
                return keep(
                    jax.tree.map(
                        lambda leaf, h: leaf if h else jax.lax.stop_gradient(leaf),
                        net,
                        is_head,
                    )
                )

            if not train:
                return keep(net)
            return jax.lax.cond(learns(ctx), learn, train_heads, net)

        return apply

    def updates(updates, state, params, *, grads, ctx, out):
        first = learns(ctx)

        def mask(update, is_head):
            return update if is_head else jnp.where(first, update, 0)

        net = jax.tree.map(mask, updates.net, head_mask(setup, updates.net))
        return updates._replace(net=net), state

    return strategy(forward=forward, updates=updates)
