"""Lets a model compute in fewer bits than its parameters have."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.checks import require
from jaxcl.types import ApplyFn, Output, PyTree

DTYPES = ("float32", "bfloat16")


def compute_in(dtype: str, apply_fn: ApplyFn) -> ApplyFn:
    """Makes a model compute in another dtype than that of its parameters.

    Parameters and inputs are rounded first; logits and taps have the dtype's precision.
    The loss, parameters, running statistics and a method's state stay float32.

    Args:
      dtype: one of `DTYPES`; "float32" leaves the model unchanged.
      apply_fn: the model's apply function.

    Raises:
      ValueError: an unknown dtype.
    """
    require(
        dtype in DTYPES,
        f"model.dtype must be one of {', '.join(DTYPES)}, got {dtype!r}",
    )
    if dtype == "float32":
        return apply_fn
    kind = jnp.dtype(dtype)

    def narrow(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: a.astype(kind), tree)

    def apply(net, model_state, x, task, key, train) -> Output:
        out = apply_fn(narrow(net), model_state, narrow(x), task, key, train)
        state = jax.tree.map(
            lambda new, old: new.astype(old.dtype), out.model_state, model_state
        )
        return out._replace(logits=out.logits.astype(jnp.float32), model_state=state)

    return apply
