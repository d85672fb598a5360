"""Whether inputs, a model and its outputs fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.checks import in_one_line, is_worded, line_of, require
from jaxcl.types import PyTree


def shape_of(example: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a batch of inputs.

    Raises:
      ValueError: it is no array, or has no axis of examples.
    """
    require(
        bool(getattr(example, "shape", ())) and hasattr(example, "dtype"),
        "example must be a batch of inputs, one array or its shape, got "
        f"{' '.join(repr(example).split()):.60}",
    )
    return shapes(example)


@contextmanager
def fitting(x: jax.Array, example: jax.ShapeDtypeStruct) -> Iterator[None]:
    """Explains an error inside: the inputs have another shape than the setup's example.

    Some models take inputs of several widths, so that these are not refused by rule.

    Args:
      x: [B, ...] inputs.
      example: of the setup.

    Raises:
      ValueError: the model has failed on inputs of another shape.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        require(
            x.shape[1:] == example.shape[1:],
            f"inputs x must be [B, {str(example.shape[1:])[1:-1].strip(',')}] as "
            f"the setup's example, got {list(x.shape)}: {in_one_line(error)}",
        )
        raise


def shapes(tree: PyTree) -> PyTree:
    """Shape and dtype of every leaf."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _called(model: Any) -> str:
    """How a model is called, for messages; Flax's models are asked what they take."""
    if not isinstance(model, type):
        return " (a plain function is called with (net, x))"
    equinox = any(base.__module__.startswith("equinox") for base in model.__mro__)
    return " (an Equinox module is called with (x) or (x, key=...))" if equinox else ""


def require_logits(
    run: Callable[..., Any], args: tuple, model: Any, num_outputs: int, example: Any
) -> None:
    """Refuses a model with another call signature or other outputs than logits.

    Args:
      run: computes the logits.
      args: the arguments of ``run``.
      model: named in messages.
      num_outputs: K of its logits [B, K].
      example: the inputs among the arguments, for messages.

    Raises:
      ValueError: the model cannot be called so, or its output is not [B, K].
    """
    name = getattr(model, "__name__", repr(model))
    try:
        out = jax.eval_shape(run, *args)
    except Exception as error:  # whatever the model's own code raises
        if is_worded(error):
            raise
        why = in_one_line(error)
        why += _called(model) if isinstance(error, TypeError) else ""
        raise ValueError(
            f"{name} fails on inputs {list(example.shape)}: {why}{line_of(error)}"
        ) from error
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != num_outputs:
        got = jax.tree.map(jnp.shape, out) if shape is None else list(shape)
        raise ValueError(
            f"{name} has to give logits [B, {num_outputs}], on inputs "
            f"{list(example.shape)} it gives {got}"
        )
    require(
        jnp.issubdtype(out.dtype, jnp.floating),
        f"{name} has to give logits that are floats, it gives {out.dtype}",
    )
