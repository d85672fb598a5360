"""Builds a model by name: a shipped network, or a Linen, NNX or Equinox class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcl import schema
from jaxcl.checks import called, imported
from jaxcl.nn.models import MODELS
from jaxcl.ops.trees import leaf_names
from jaxcl.types import ApplyFn, Output, PyTree

GIVEN = ("num_outputs", "input_shape", "rngs", "key")
"""Arguments that the code building a model gives, never a config."""


@dataclass(frozen=True)
class Built:
    """An NNX or Equinox model given by its class, and built again for each seed.

    Attributes:
      build: the class, or a function that returns a model; it takes ``rngs`` (an
        `nnx.Rngs`) for NNX, ``key`` for Equinox.
      fields: all its other arguments.
    """

    build: Callable[..., Any]
    fields: Mapping[str, Any]

    @property
    def is_nnx(self) -> bool:
        return "rngs" in _parameters(self.build)

    @property
    def axis(self) -> int:
        """The axis of a kernel over its outputs."""
        return -1 if self.is_nnx else 0

    def model(self, key: jax.Array) -> Any:
        """The model, drawn from a key."""
        if self.is_nnx:
            from flax import nnx  # Linen users do not load it

            return self.build(**self.fields, rngs=nnx.Rngs(key))
        return self.build(**self.fields, key=key)

    @cached_property
    def _template(self) -> Any:
        return self.model(jax.random.key(0))

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Parameters and state, as nested dicts with the names of their paths."""
        if self.is_nnx:
            from jaxcl.nn.nnx import split

            return split(self.model(key))
        from jaxcl.nn.equinox import split

        return _nested(split(self.model(key))), {}

    def apply_fn(self) -> ApplyFn:
        """The pure ``(net, model_state, x, task, key, train) -> Output``.

        Images come as [B, H, W, C]. An Equinox model gets them one by one as [C, H, W],
        the layout of its convolutions.
        """
        if self.is_nnx:
            from jaxcl.nn import nnx

            return nnx.apply_fn(self._template)
        from jaxcl.nn import equinox

        inner = equinox.apply_fn(self._template)
        like = equinox.split(self._template)

        def apply(net, model_state, x, task, key, train) -> Output:
            x = jnp.moveaxis(x, -1, 1) if x.ndim == 4 else x
            return inner(_put_back(like, net), model_state, x, task, key, train)

        return apply


def build_model(
    name: str,
    fields: Mapping[str, Any],
    *,
    num_outputs: int,
    input_shape: tuple[int, ...],
    num_tasks: int,
) -> nn.Module | Built:
    """Builds the model that a config names.

    Args:
      name: one of `MODELS`, or an import path "package.module:Class".
      fields: the model's fields.
      num_outputs: K, which every model takes.
      input_shape: the shape of an example, which a model may take.
      num_tasks: T, for a norm "batch_per_task".

    Returns:
      A Linen module, or a `Built`.

    Raises:
      ValueError: an unknown name or field, or a field without a value.
    """
    build = class_of(name)
    takes = _parameters(build)
    settings = settings_of(name)
    unknown = sorted(set(fields) - set(settings))
    if unknown and inspect.Parameter.VAR_KEYWORD not in {
        p.kind for p in takes.values()
    }:
        raise ValueError(
            f"model {name!r} has no field {', '.join(unknown)}; it has "
            f"{', '.join(sorted(settings)) or 'none'}"
        )
    if "num_outputs" not in takes:
        raise ValueError(
            f"model {name!r} has to take num_outputs, the number of its outputs; it "
            f"takes {', '.join(takes)}"
        )
    whole = dict(fields)
    missing = [k for k, v in settings.items() if v is REQUIRED and whole.get(k) is None]
    if missing:
        raise ValueError(
            f"model {name!r} needs a value for {', '.join(missing)}: "
            f"--config.model.{missing[0]}=VALUE"
        )
    if "num_tasks" in takes and whole.get("norm") == "batch_per_task":
        whole.setdefault("num_tasks", num_tasks)
    whole["num_outputs"] = num_outputs
    if "input_shape" in takes:
        whole["input_shape"] = input_shape
    schema.require_all(f"{name}: ", fields, schema.kinds_of(build))
    if "rngs" in takes or "key" in takes:
        model = Built(build, whole)
        called(name, lambda **_: jax.eval_shape(model.init, jax.random.key(0)), **whole)
        return model
    return called(name, build, **whole)


REQUIRED = object()
"""Marks a field that has no default."""


def settings_of(name: str) -> dict[str, Any]:
    """A model's fields with their defaults, or `REQUIRED` if there is none.

    Raises:
      ValueError: an unknown name.
    """
    ours = {*GIVEN, "parent", "name"}
    return {
        p.name: REQUIRED if p.default is p.empty else p.default
        for p in _parameters(class_of(name)).values()
        if p.name not in ours and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def class_of(name: str) -> Callable[..., Any]:
    """What builds a model of a name.

    Raises:
      ValueError: an unknown name.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" in name:
        return imported(name, "model")
    raise ValueError(
        f"unknown model {name!r}; known: {', '.join(MODELS)}, or an import path "
        "'package.module:Class'"
    )


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if not isinstance(build, type):
        return inspect.signature(build).parameters
    # Not the class's own signature: its metaclass may accept anything.
    _, *own = inspect.signature(build.__init__).parameters.items()
    return dict(own)


def _nested(tree: PyTree) -> dict[str, Any]:
    """A tree's leaves in nested dicts, by the names in their paths."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *nodes, last = leaf_names(path)
        at = found
        for node in nodes:
            at = at.setdefault(node, {})
        at[last] = leaf
    return found


def _put_back(like: PyTree, nested: Mapping[str, Any]) -> PyTree:
    """The inverse of `_nested`: a tree like ``like`` from nested dicts."""

    def leaf(path, _):
        at: Any = nested
        for node in leaf_names(path):
            at = at[node]
        return at

    return jax.tree_util.tree_map_with_path(leaf, like)
