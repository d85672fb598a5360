"""Claim 11's networks: pretrained on ImageNet, with its classifier for the source.

Such a network has the source's 200 outputs first, then the target's. The first 200 get
their rows of ImageNet's classifier, so the network knows the source from the start.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.contract import Strategy
from jaxcl.nn import pretrained
from jaxcl.nn.efficientnet import FEATURES, EfficientNetLite0
from jaxcl.nn.layers import Checked, Dense
from jaxcl.ops.trees import tree_where
from jaxcl.schema import Count, Shrinkage, checked
from jaxcl.strategies import slda
from jaxcl.types import Setup

from .imagenet import INDEX


class Transferred(EfficientNetLite0):
    """EfficientNet-Lite0; pretrained="features" also loads the source's outputs.

    Attributes:
      num_outputs: the source's 200, then the target's.
      pretrained, statistics, dropout: as in `EfficientNetLite0`.
    """

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the base class, with ImageNet's rows for the source's classes."""
        variables = super().init(rngs, *args, **kwargs)
        return variables if self.pretrained == "none" else _with_source(variables)


class SourceHead(Checked):
    """Only the classifier of `Transferred`, for features [B, 1280]; always pretrained.

    Attributes:
      num_outputs: as in `Transferred`.
    """

    num_outputs: Count

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in any module, with ImageNet's rows for the source's classes."""
        return _with_source(super().init(rngs, *args, **kwargs))

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        if x.shape[1:] != (FEATURES,):
            raise ValueError(f"features must be [B, {FEATURES}], got {list(x.shape)}")
        return Dense(self.num_outputs, name="head")(x)


def _with_source(variables: Any) -> Any:
    """The variables, with ImageNet's rows in the head's first 200 outputs."""
    given, index = pretrained.efficientnet_lite0(), np.array(list(INDEX.values()))
    head = {}
    for leaf, own in variables["params"]["head"].items():
        rows = given["params", "head", leaf][..., index]
        head[leaf] = jnp.asarray(own).at[..., : len(index)].set(rows)
    params = {**variables["params"], "head": head}
    return {**variables, "params": params}


@checked
def target_slda(
    setup: Setup, *, shrinkage: Shrinkage = 1e-4, chunk: Count = 512
) -> Strategy:
    """SLDA for the target's classes; the network's classifier for the source's classes.

    Args:
      setup: its first task is the source.
      shrinkage: as in `jaxcl.strategies.slda`.
      chunk: likewise.

    Returns:
      A `Strategy` with the state of `slda`.

    Raises:
      ValueError: as `slda`.
    """
    inner = slda(setup, shrinkage=shrinkage, chunk=chunk)
    source = setup.logit_mask[0]

    def forward(apply_fn, state, aux, *, ctx):
        behind = inner.forward(apply_fn, state, aux, ctx=ctx)

        def apply(net, model_state, x, task, key, train):
            given = (net, model_state, x, task, key, train)
            out = behind(*given)
            own = apply_fn(*given).logits
            return out._replace(logits=jnp.where(source, own, out.logits))

        return apply

    def after_task(params, state, *, data, model_state, task, key):
        rest = dict(data=data, model_state=model_state, task=task, key=key)
        params, new = inner.after_task(params, state, **rest)
        return params, tree_where(task > 0, new, state)

    return inner._replace(forward=forward, after_task=after_task)
