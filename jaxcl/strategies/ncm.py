"""The nearest class mean, a classifier in closed form.

Mensink et al., Distance-based image classification: generalizing to new classes at
near-zero cost, TPAMI 2013.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.contract import Strategy, strategy
from jaxcl.ops.discriminant import (
    ClassMeans,
    LinearHead,
    absorb,
    logits,
    nearest_mean,
    no_means,
)
from jaxcl.schema import Count, checked
from jaxcl.strategies._closed_form import (
    Examples,
    answer,
    head_layer,
    over_features,
    tasks_done,
)
from jaxcl.types import Setup


class NCMState(NamedTuple):
    """Class means of the features as they were when each task ended."""

    means: ClassMeans  # float32[K], float32[K, D]
    head: LinearHead  # computed from them
    done: jax.Array  # int32[] tasks absorbed


@checked
def ncm(setup: Setup, *, chunk: Count = 512) -> Strategy:
    """Answers with the class whose mean feature is nearest.

    argmin_k ‖x − m_k‖,  m_k = Σ_{i: yᵢ = k} xᵢ / n_k

    with x the classifier's input in evaluation mode. After each task one pass adds its
    examples to the means. They are never seen again, so a mean is that of the features
    as they were at its task's end. Training is not changed: in a chain the other
    members decide what the features are.

    Args:
      setup: the run's `Setup`; its classifier is one dense layer.
      chunk: examples at once.

    Returns:
      A `Strategy` with an `NCMState`. In a chain put it last: it reads the network as
      the others wrap it (see `jaxcl.types.TaskData`). A class that it has not seen gets
      the lowest finite logit.

    Raises:
      ValueError: an argument out of range; a classifier it cannot read, by name.

    Differs from RanPAC's and RanDumb's baselines of this name, which compare by the
    cosine.
    """
    layer = head_layer(setup, "ncm")
    classes = setup.logit_mask.shape[1]

    def init(params):
        means = no_means(classes, layer.d_in)
        return NCMState(means, nearest_mean(means), jnp.zeros((), jnp.int32))

    def forward(apply_fn, state, aux, *, ctx):
        return answer(apply_fn, layer, state.done, ctx, lambda x: logits(state.head, x))

    def after_task(params, state, *, data, model_state, task, key):
        def take(means, x, y, weight):
            return absorb(means, x, y, weight)[0]

        examples = Examples(
            setup, layer, params.net, model_state, data, task, key, chunk
        )
        means = over_features(examples, take, state.means)
        done = tasks_done(state.done, task)
        return params, NCMState(means, nearest_mean(means), done)

    return strategy(
        init=init, forward=forward, after_task=after_task, needs_every_task=True
    )
