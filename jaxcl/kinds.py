"""Refuses objects of another kind than a function takes, or a hook gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.checks import require


def settings_of(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    """A strategy factory's settings: all its parameters but the first, the setup."""
    parameters = inspect.signature(factory).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [*named[1:], *own]


def require_instance(name: str, value: Any, kind: type) -> None:
    """Refuses what is not of a class, such as a factory that was not called.

    Raises:
      ValueError: the message gives the value, or its class if its repr is long.
    """
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) < 60 else f"a {type(value).__name__}"
    where = kind.__module__.split(".")[0]
    require(
        isinstance(value, kind),
        f"{name} must be a built {where} {kind.__name__}, got {shown}",
    )


def require_hooks(given: Mapping[str, Any]) -> None:
    """Refuses hooks that cannot be called; flags and ``beside`` are none.

    Raises:
      ValueError: the message names the hook.
    """
    for name, hook in given.items():
        is_hook = not name.startswith("needs_") and name != "beside"
        require(
            not is_hook or hook is None or callable(hook),
            f"hook {name} must be a function, got {hook!r:.60}",
        )


def require_arrays(name: str, tree: Any) -> None:
    """Refuses a hook's tree with a leaf that is no array, which a step cannot carry.

    Raises:
      ValueError: the message names the leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        require(
            hasattr(leaf, "dtype") and hasattr(leaf, "shape"),
            f"hook {name} has to give a tree of arrays, but its leaf {where!r} is "
            f"{leaf!r:.40}, of {type(leaf).__name__}: use jnp.asarray",
        )


def require_pair(hook: str, found: Any, first: Any, state: Any) -> None:
    """Refuses what a hook gave if it is not a pair like (`first`, `state`).

    A loop carries both: they keep their structure, shapes and, of the state, dtypes.

    Raises:
      ValueError: the message names the hook, and the leaf that differs.
    """
    parts = {"after_task": "params", "grads": "gradients"}.get(hook, hook), "state"
    require(
        type(found) is tuple and len(found) == 2,  # `Params` are a tuple, too
        f"hook {hook} has to give two things, ({parts[0]}, state), it gave "
        f"{_kind(found)}",
    )
    for part, new, old in zip(parts, found, (first, state), strict=True):
        what = f"hook {hook} has to give {part} like the {part} it was given"
        now, before = jax.tree.structure(new), jax.tree.structure(old)
        require(now == before, f"{what}, {before!s:.200}; it gave {now!s:.200}")
        leaves = jax.tree_util.tree_leaves_with_path(new)
        for (path, a), b in zip(leaves, jax.tree.leaves(old), strict=True):
            same = jnp.shape(a) == jnp.shape(b)
            if part == "state":
                same = same and _dtype(a) == _dtype(b)
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            leaf = f"leaf {where!r}" if where else "it"
            require(same, f"{what}; {leaf} was {_kind(b)} and is {_kind(a)}")


def require_loss(found: Any, output: type) -> None:
    """Refuses what a strategy's loss gave if it is not (scalar, `Output`).

    Raises:
      ValueError: the message tells what came instead.
    """
    pair = isinstance(found, tuple) and len(found) == 2
    if pair and isinstance(found[1], output):
        loss = found[0]
        if isinstance(loss, float) or (
            getattr(loss, "shape", None) == ()
            and jnp.issubdtype(loss.dtype, jnp.floating)
        ):
            return
    came = ", ".join(map(_kind, found)) if pair else _kind(found)
    raise ValueError(
        "a loss hook has to make a function (params, ctx) -> (scalar, Output) like the "
        f"one it is given; this one gave {f'({came})' if pair else came}"
    )


def _dtype(value: Any) -> Any:
    return value.dtype if hasattr(value, "dtype") else jnp.result_type(value)


def _kind(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
