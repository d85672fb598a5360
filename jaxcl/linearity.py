"""Whether an optimizer leaves projected gradients in their subspace."""

from __future__ import annotations

import itertools
import warnings

import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.contract import Strategy
from jaxcl.kinds import require_instance

TRIED = 256
"""The most steps that an optimizer is given to make four updates."""


def keeps_subspace(optimizer: optax.GradientTransformation) -> bool:
    """Whether an optimizer's updates stay in any subspace its gradients stay in.

    Found by trial: a few steps on gradients orthogonal to a random direction, at
    parameters that are not, must give updates orthogonal to that direction. Steps whose
    update is 0, as most of `optax.MultiSteps`, do not count. True for SGD, momentum,
    schedules and clipping by norm. False for Adam and all others that scale each
    coordinate separately, for clipping by value, for weight decay and for noise.

    Args:
      optimizer: any optax transformation; it is called with an extra argument
        ``value``, which line searches need.

    Returns:
      A Python bool. Must not be called inside jit.

    Raises:
      ValueError: four updates other than 0 do not come in 256 steps.
    """
    rng = np.random.default_rng(0)
    tx = optax.with_extra_args_support(optimizer)
    params = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    normal = rng.normal(size=6)
    normal /= np.linalg.norm(normal)
    state, moved = tx.init(params), 0
    for scale in itertools.islice(itertools.cycle((1e-2, 1.0, 1e2, 1.0)), TRIED):
        grads = scale * rng.normal(size=(6, 5))
        grads -= np.outer(normal, normal @ grads)
        updates, state = tx.update(
            jnp.asarray(grads, jnp.float32), state, params, value=jnp.zeros(())
        )
        leak = np.linalg.norm(normal @ np.asarray(updates, np.float64))
        if leak > 1e-5 * np.linalg.norm(updates):
            return False
        params = optax.apply_updates(params, updates)
        moved += bool((np.asarray(updates) != 0).any())
        if moved == 4:
            return True
    raise ValueError(f"of its first {TRIED} updates only {moved} are not 0")


def warn_unless_linear(
    strategy: Strategy, optimizer: optax.GradientTransformation
) -> None:
    """Warns if a strategy that projects gradients protects nothing under an optimizer.

    Args:
      strategy: judged by its field ``needs_linear``.
      optimizer: the one that receives the projected gradients.

    Raises:
      ValueError: one of the two is something else, such as a factory not called.
    """
    require_instance("strategy", strategy, Strategy)
    if not all(callable(getattr(optimizer, part, None)) for part in ("init", "update")):
        require_instance("optimizer", optimizer, optax.GradientTransformation)
    if told := unprotected(strategy, optimizer):
        warnings.warn(told, stacklevel=3)


def unprotected(
    strategy: Strategy, optimizer: optax.GradientTransformation
) -> str | None:
    """Why a strategy protects nothing under an optimizer, in words; None if it does."""
    if not strategy.needs_linear:
        return None
    try:
        kept = keeps_subspace(optimizer)
    except Exception as error:  # it may work only on the parameters it was written for
        return (
            "this strategy projects gradients; whether this optimizer's updates stay "
            f"in the subspace of its gradients could not be tried: {error}"
        )
    if kept:
        return None
    return (
        "this strategy projects gradients, and this optimizer's updates leave the "
        "subspace that its gradients lie in (as Adam's and weight decay do): earlier "
        'tasks are not protected; use where="updates", or plain SGD with or without '
        "momentum"
    )
