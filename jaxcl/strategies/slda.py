"""Streaming linear discriminant analysis, a classifier in closed form.

Hayes & Kanan, Lifelong machine learning with deep streaming linear discriminant
analysis, CVPR workshops 2020, https://arxiv.org/abs/1909.01520; code:
https://github.com/tyler-hayes/Deep_SLDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.contract import Strategy, strategy
from jaxcl.ops.discriminant import (
    ClassMeans,
    LinearHead,
    absorb,
    discriminant,
    half_gram,
    logits,
    nearest_mean,
    no_means,
    whole_gram,
)
from jaxcl.ops.linalg import EXACT
from jaxcl.schema import Count, Shrinkage, checked
from jaxcl.strategies._closed_form import (
    Examples,
    answer,
    head_layer,
    over_features,
    tasks_done,
)
from jaxcl.types import Setup


class SLDAState(NamedTuple):
    """Class means and shared scatter of the features as each task left them."""

    means: ClassMeans  # float32[K], float32[K, D]
    scatter: jax.Array  # float32[D, D] within classes
    head: LinearHead  # computed from them
    done: jax.Array  # int32[] tasks absorbed


class RandomFeaturesState(NamedTuple):
    """A fixed projection, and discriminant analysis behind it."""

    projection: jax.Array  # float32[d, D]; 0 until the first task ends
    slda: SLDAState


@checked
def slda(setup: Setup, *, shrinkage: Shrinkage = 1e-4, chunk: Count = 512) -> Strategy:
    """Answers by class means and one covariance that all classes share.

    argmax_k −½ (x − m_k)ᵀ A⁻¹ (x − m_k),  A = (1 − ε) Σ + ε I

    with x the classifier's input in evaluation mode, m_k the mean of class k, Σ the
    covariance within classes; all classes have the same prior probability. After each
    task one pass adds its examples to m and Σ. They are never seen again, so both are
    those of the features as they were at each task's end. Training is not
    changed: in a chain the other members decide what the features are.

    Args:
      setup: the run's `Setup`; its classifier is one dense layer.
      shrinkage: ε in (0, 1].
      chunk: examples at once.

    Returns:
      A `Strategy` with an `SLDAState`. In a chain put it last: it reads the network as
      the others wrap it (see `jaxcl.types.TaskData`). A class that it has not seen gets
      the lowest finite logit.

    Raises:
      ValueError: an argument out of range; a classifier it cannot read, by name.

    Differs from the official code, which weights an example's deviation from its class
    mean by n/(n + 1) with n the count of *all* examples; this is right for a single
    class only. Here n is the class's own count, so the result is that of all examples
    at once, in any order. There, the first example of each later class also counts as a
    deviation from 0, and enters Σ whole. There, Σ may also start from a base set, with
    a shrinkage chosen by its data. Both compute means by class counts. The official
    pseudo-inverse is a Cholesky solve here, which the ridge allows.
    """
    layer = head_layer(setup, "slda")

    def init(params):
        return _empty(setup, layer.d_in)

    def forward(apply_fn, state, aux, *, ctx):
        return answer(apply_fn, layer, state.done, ctx, lambda x: logits(state.head, x))

    def after_task(params, state, *, data, model_state, task, key):
        examples = Examples(
            setup, layer, params.net, model_state, data, task, key, chunk
        )
        return params, _taken_in(state, examples, shrinkage, lambda x: x)

    return strategy(
        init=init, forward=forward, after_task=after_task, needs_every_task=True
    )


@checked
def random_features(
    setup: Setup,
    *,
    width: Count = 3000,
    shrinkage: Shrinkage = 1e-4,
    chunk: Count = 512,
) -> Strategy:
    """`slda` on random features of the classifier's input: ReLU(x P).

    P_ij ~ N(0, 1/d), for inputs x of d numbers, drawn only once, when the first task
    ends. On the network `jaxcl.nn.models.Linear` these are features of the pixels.

    Args:
      setup: the run's `Setup`; its classifier is one dense layer.
      width: D ≥ 1, the number of features.
      shrinkage: ε in (0, 1], as in `slda`.
      chunk: examples at once.

    Returns:
      A `Strategy` with a `RandomFeaturesState`; in a chain put it last.

    Raises:
      ValueError: as for `slda`; a width below 1.

    Source: McDonnell et al., RanPAC, NeurIPS 2023, https://arxiv.org/abs/2307.02251,
    and Prabhu et al., RanDumb, 2024, https://arxiv.org/abs/2402.08823.

    Differs from RanPAC, which has ReLU too and a normal P of variance 1, in the head:
    RanPAC's is ridge regression to one-hot classes, with a strength chosen again on
    each task. Differs from RanDumb, which has this head, in the features and in the
    shrinkage: RanDumb's features are cosines with random phases that approximate a
    Gaussian kernel, and its shrinkage is estimated.
    """
    layer = head_layer(setup, "random_features")
    d = layer.d_in

    def features(projection: jax.Array, x: jax.Array) -> jax.Array:
        return jax.nn.relu(jnp.matmul(x, projection, precision=EXACT))

    def init(params):
        return RandomFeaturesState(jnp.zeros((d, width)), _empty(setup, width))

    def forward(apply_fn, state, aux, *, ctx):
        def give(x):
            return logits(state.slda.head, features(state.projection, x))

        return answer(apply_fn, layer, state.slda.done, ctx, give)

    def after_task(params, state, *, data, model_state, task, key):
        draw_key, order_key = jax.random.split(key)
        projection = jax.lax.cond(
            state.slda.done > 0,
            lambda: state.projection,
            lambda: jax.random.normal(draw_key, (d, width)) * d**-0.5,
        )
        examples = Examples(
            setup, layer, params.net, model_state, data, task, order_key, chunk
        )

        def phi(x):
            return features(projection, x)

        new = _taken_in(state.slda, examples, shrinkage, phi)
        return params, RandomFeaturesState(projection, new)

    return strategy(
        init=init, forward=forward, after_task=after_task, needs_every_task=True
    )


def _empty(setup: Setup, width: int) -> SLDAState:
    means = no_means(setup.logit_mask.shape[1], width)
    zero = jnp.zeros((), jnp.int32)
    return SLDAState(means, jnp.zeros((width, width)), nearest_mean(means), zero)


def _taken_in(
    state: SLDAState,
    examples: Examples,
    shrinkage: float | jax.Array,
    features: Callable[[jax.Array], jax.Array],
) -> SLDAState:
    """The state after a task, with its examples absorbed."""

    def take(carry, x, y, weight):
        means, half = carry
        means, rows = absorb(means, features(x), y, weight)
        return means, jax.tree.map(jnp.add, half, half_gram(rows))

    none = half_gram(jnp.zeros((1, state.scatter.shape[0])))
    means, half = over_features(examples, take, (state.means, none))
    scatter = state.scatter + whole_gram(half)
    head = discriminant(means, scatter, shrinkage)
    return SLDAState(means, scatter, head, tasks_done(state.done, examples.task))
