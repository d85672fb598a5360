"""Whether an optimizer leaves projected gradients in their subspace."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.contract import Strategy
from jaxcl.kinds import require_instance
from jaxcl.types import LayerSpec, Params, PyTree, Setup

TRIED = 256
"""The most steps that an optimizer is given to make four updates."""


def keeps_subspace(
    optimizer: optax.GradientTransformation, layers: Sequence[LayerSpec] = ()
) -> bool:
    """Whether an optimizer's updates stay in any subspace its gradients stay in.

    Found by trial: a few steps on gradients orthogonal to a random direction, at
    parameters that are not, must give updates orthogonal to that direction. Steps whose
    update is 0, as most of `optax.MultiSteps`, do not count. True for SGD, momentum,
    schedules and clipping by norm. False for Adam and all others that scale each
    coordinate separately, for clipping by value, for weight decay and for noise.

    Args:
      optimizer: any optax transformation; it is called with an extra argument
        ``value``, which line searches need.
      layers: whose kernels are tried, each on its own axis, in a small `Params` of
        their names and number of axes: some optimizers treat matrices otherwise than
        windows, or go by names. Without them one matrix [6, 5] is.

    Returns:
      A Python bool, inside jit too.

    Raises:
      ValueError: four updates other than 0 do not come in 256 steps.
    """
    rng = np.random.default_rng(0)
    tx = optax.with_extra_args_support(optimizer)
    axes = {layer.path: layer.axis for layer in layers} or {(): -1}
    with jax.ensure_compile_time_eval():
        params = _trial(rng, layers)
        shapes = {p: _rows(_at(params, p), axis).shape for p, axis in axes.items()}
        normals = {path: rng.normal(size=shape[0]) for path, shape in shapes.items()}
        state, moved = tx.init(params), 0
        for scale in itertools.islice(itertools.cycle((1e-2, 1.0, 1e2, 1.0)), TRIED):
            grads = jax.tree.map(
                lambda w, s=scale: s * rng.normal(size=w.shape), params
            )
            for path, normal in normals.items():
                rows = _rows(_at(grads, path), axes[path])
                # A view: the gradient itself changes.
                rows -= np.outer(normal, normal @ rows) / (normal @ normal)
            grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
            updates, state = tx.update(grads, state, params, value=jnp.zeros(()))
            for path, normal in normals.items():
                u = _rows(np.asarray(_at(updates, path), np.float64), axes[path])
                most = 1e-5 * np.linalg.norm(u) * np.linalg.norm(normal)
                if np.linalg.norm(normal @ u) > most:
                    return False
            params = optax.apply_updates(params, updates)
            moved += any((np.asarray(u) != 0).any() for u in jax.tree.leaves(updates))
            if moved == 4:
                return True
    raise ValueError(f"of its first {TRIED} updates only {moved} are not 0")


def _trial(rng: np.random.Generator, layers: Sequence[LayerSpec]) -> PyTree:
    """Small parameters to try an optimizer on: kernels like those of the layers."""
    if not layers:
        return jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    net: dict[str, Any] = {}
    for layer in layers:
        inner = net
        for name in layer.path[:-1]:
            inner = inner.setdefault(name, {})
        window = [min(n, 3) for n in layer.window] if layer.kind == "conv" else []
        shape = [*window, 4, 5] if layer.axis == -1 else [5, 4, *window]
        inner[layer.path[-1]] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return Params(net, {})


def _at(tree: PyTree, path: tuple[str, ...]) -> Any:
    """A kernel of `_trial`'s parameters, or of a tree like them."""
    return reduce(getitem, path, getattr(tree, "net", tree))


def _rows(kernel: Any, axis: int) -> Any:
    """A kernel as a matrix [d_in, n_out]; of a NumPy array it is a view."""
    if axis == -1:
        return kernel.reshape(-1, kernel.shape[-1])
    return kernel.reshape(kernel.shape[0], -1).T


def warn_unless_linear(
    strategy: Strategy,
    optimizer: optax.GradientTransformation,
    setup: Setup | None = None,
) -> None:
    """Warns if a strategy that projects gradients protects nothing under an optimizer.

    Args:
      strategy: judged by its field ``needs_linear``.
      optimizer: the one that receives the projected gradients.
      setup: gives the layers whose kernels are tried; see `keeps_subspace`.

    Raises:
      ValueError: one of the two is something else, such as a factory not called.
    """
    require_instance("strategy", strategy, Strategy)
    if not all(callable(getattr(optimizer, part, None)) for part in ("init", "update")):
        require_instance("optimizer", optimizer, optax.GradientTransformation)
    if told := unprotected(strategy, optimizer, setup):
        warnings.warn(told, stacklevel=3)


def unprotected(
    strategy: Strategy,
    optimizer: optax.GradientTransformation,
    setup: Setup | None = None,
) -> str | None:
    """Why a strategy protects nothing under an optimizer, in words; None if it does."""
    if not strategy.needs_linear:
        return None
    try:
        kept = keeps_subspace(optimizer, setup.layers if setup else ())
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
