"""Claim 11's networks: what ImageNet taught, its rows for the source's classes with it.

A network that has the source's 200 outputs before the target's keeps, for those, the
rows of ImageNet's classifier: what it knows of the source is there from the start.
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
    """EfficientNet-Lite0; pretrained="features" gives it the source's outputs as well.

    Attributes:
      num_outputs: the source's 200 and the target's behind them.
      pretrained, statistics, dropout: as `EfficientNetLite0` has them.
    """

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """As of its parent, with ImageNet's rows for the source's classes."""
        variables = super().init(rngs, *args, **kwargs)
        return variables if self.pretrained == "none" else _with_source(variables)


class SourceHead(Checked):
    """The classifier of `Transferred` alone, for features [B, 1280]; always pretrained.

    Attributes:
      num_outputs: as of `Transferred`.
    """

    num_outputs: Count

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """As of any module, with ImageNet's rows for the source's classes."""
        return _with_source(super().init(rngs, *args, **kwargs))

    @nn.compact
    def __call__(self, x: jax.Array, task: jax.Array, train: bool) -> jax.Array:
        if x.shape[1:] != (FEATURES,):
            raise ValueError(f"features must be [B, {FEATURES}], got {list(x.shape)}")
        return Dense(self.num_outputs, name="head")(x)


def _with_source(variables: Any) -> Any:
    """Variables whose head's first 200 outputs are ImageNet's for those classes."""
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
    """SLDA for the target's classes; the source's keep the network's own classifier.

    Args:
      setup: the first task is the source.
      shrinkage: as `jaxcl.strategies.slda`.
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
