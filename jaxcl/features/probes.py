"""Linear probes: how well a task's classes can be read from features.

A probe is fitted to training examples, its strength is chosen on training examples held
out from the fit, and its accuracy is measured on test examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcl.features.matrix import centred, classes_of, flat, labelled, or_one
from jaxcl.ops.decompositions import ridge
from jaxcl.ops.linalg import EXACT
from jaxcl.schema import Count, NonEmpty, NonNegative, Positive, checked

Strengths = Annotated[Sequence[Positive], NonEmpty()]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Probe(NamedTuple):
    """A linear classifier of features: class argmax_k (x W + b)_k."""

    weights: jax.Array  # float32[D, K]
    bias: jax.Array  # float32[K]
    strength: jax.Array  # float32[] the λ of the fit; 0 if there is none


def accuracy(probe: Probe, x: jax.Array, y: jax.Array) -> jax.Array:
    """The share of examples that a probe classifies correctly.

    Args:
      probe: a `Probe`.
      x: float[N, ...] features; axes after the first are flattened to D.
      y: int[N] classes from 0.

    Returns:
      float32[]; NaN if a score is not finite: then the largest says nothing.

    Raises:
      ValueError: the classes are no whole numbers, or not one for each example.
    """
    x = flat(x)
    y = classes_of(x, y)
    scores = _scores(probe, x)
    right = jnp.mean(scores.argmax(-1) == y)
    return jnp.where(jnp.isfinite(scores).all(), right, jnp.nan)


@checked
def ridge_probe(
    x: jax.Array,
    y: jax.Array,
    x_held: jax.Array,
    y_held: jax.Array,
    *,
    num_classes: Count,
    strengths: Strengths = STRENGTHS,
) -> Probe:
    """Least squares to one-hot classes with an L2 penalty, in closed form.

    W = argmin ‖X W − Y‖_F² + λ ν ‖W‖_F² = (XᵀX + λ ν I)⁻¹ Xᵀ Y,

    with X and Y centred, ν = ‖X‖_F² / D so that λ does not depend on the features'
    scale or number, and b the difference of the means; solved in float64. The λ with
    the most correct answers on the held-out examples is taken, and the largest of
    several equally good ones.

    Args:
      x: float[N, ...] features of the examples to fit; later axes are flattened to D.
      y: int[N] classes from 0.
      x_held: float[M, ...] features of training examples held out.
      y_held: int[M].
      num_classes: K.
      strengths: candidates for λ, each positive.

    Returns:
      A `Probe`, fitted to the N examples only.

    Raises:
      ValueError: no strength, or one that is not positive and finite; x and y of
        unequal length; classes that are no whole numbers in [0, K), here or among the
        held-out ones.
    """
    data = *labelled(x, y, num_classes), *labelled(x_held, y_held, num_classes)
    return _ridge(*data, jnp.asarray(strengths, jnp.float32), num_classes)


@partial(jax.jit, static_argnums=5)
def _ridge(x, y, x_held, y_held, candidates, num_classes: int) -> Probe:
    one_hot = jax.nn.one_hot(y, num_classes)
    weights, bias = ridge(x, one_hot, candidates)
    return _best(Probe(weights, bias, candidates), x_held, y_held)


@checked
def multinomial_probe(
    x: jax.Array,
    y: jax.Array,
    x_held: jax.Array,
    y_held: jax.Array,
    *,
    num_classes: Count,
    strengths: Strengths = STRENGTHS,
    max_steps: Count = 200,
    tolerance: NonNegative = 1e-5,
) -> Probe:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS.

    W, b = argmin mean cross-entropy of softmax(Z W + b) + λ/2 ‖W‖_F²,

    Z = (X − mean) / s with s² = ‖X − mean‖_F² / (N D), one scale for all features, so
    that λ does not depend on it. The probe is given for X itself. λ is chosen as for
    `ridge_probe`.

    Args:
      x: float[N, ...] features of the examples to fit; later axes are flattened to D.
      y: int[N] classes from 0.
      x_held: float[M, ...] features of training examples held out.
      y_held: int[M].
      num_classes: K.
      strengths: candidates for λ, each positive.
      max_steps: most steps of L-BFGS, at least 1.
      tolerance: L-BFGS ends when the gradient's norm is smaller.

    Returns:
      A `Probe`, fitted to the N examples only.

    Raises:
      ValueError: as for `ridge_probe`; max_steps below 1; a tolerance below 0.
    """
    candidates = jnp.asarray(strengths, jnp.float32)
    data = *labelled(x, y, num_classes), *labelled(x_held, y_held, num_classes)
    return _multinomial(*data, candidates, num_classes, max_steps, tolerance)


@partial(jax.jit, static_argnums=(5, 6))
def _multinomial(x, y, x_held, y_held, candidates, num_classes, max_steps, tolerance):
    mean, away = x.mean(axis=0), centred(x)
    scale = or_one(jnp.sqrt(jnp.mean(jnp.square(away))))
    z = away / scale

    def fit(strength: jax.Array) -> Probe:
        def loss(parameters):
            weights, bias = parameters
            logits = jnp.matmul(z, weights, precision=EXACT) + bias
            each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return each.mean() + strength / 2 * jnp.sum(weights * weights)

        start = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
        weights, bias = _minimise(loss, start, max_steps, tolerance)
        weights = weights / scale
        bias = bias - jnp.matmul(mean, weights, precision=EXACT)
        return Probe(weights, bias, strength)

    return _best(jax.lax.map(fit, candidates), x_held, y_held)


@checked
def ncm(x: jax.Array, y: jax.Array, *, num_classes: Count) -> Probe:
    """The nearest class mean, as a linear probe.

    argmin_k ‖x − μ_k‖² = argmax_k (xᵀμ_k − ½‖μ_k‖²).

    Args:
      x: float[N, ...] features; later axes are flattened to D.
      y: int[N] classes from 0.
      num_classes: K. A class without examples is never predicted.

    Returns:
      A `Probe`; features and means are taken relative to the mean of all, which changes
      no answer and loses fewer digits.

    Raises:
      ValueError: x and y differ in length; classes that are no whole numbers in [0, K).

    Source: Mensink et al., Distance-based image classification, TPAMI 2013.
    """
    x, y = labelled(x, y, num_classes)
    one_hot = jax.nn.one_hot(y, num_classes)
    count = one_hot.sum(axis=0)
    mean = x.mean(axis=0)
    sums = jnp.matmul((x - mean).T, one_hot, precision=EXACT)
    centre = sums / jnp.maximum(count, 1)  # [D, K], relative to the mean
    offset = -0.5 * jnp.sum(centre * centre, axis=0)
    bias = offset - jnp.matmul(mean, centre, precision=EXACT)
    lowest = jnp.finfo(bias.dtype).min
    return Probe(centre, jnp.where(count > 0, bias, lowest), jnp.zeros(()))


def _best(probes: Probe, x: jax.Array, y: jax.Array) -> Probe:
    """Of several probes [L, ...], the one that is best on held-out examples."""
    # One product of [M, D] and [D, L K]: XLA does L small ones slowly on a CPU.
    together = jnp.moveaxis(probes.weights, 0, 1).reshape(x.shape[1], -1)
    scores = jnp.matmul(x, together, precision=EXACT)
    scores = scores.reshape(len(x), *probes.bias.shape) + probes.bias
    right = jnp.mean(scores.argmax(-1) == y[:, None], axis=0)
    best = jnp.where(right == right.max(), probes.strength, 0).argmax()
    return jax.tree.map(lambda leaf: leaf[best], probes)


def _scores(probe: Probe, x: jax.Array) -> jax.Array:
    return jnp.matmul(x, probe.weights, precision=EXACT) + probe.bias


def _minimise(loss, start: Any, max_steps: int, tolerance: float) -> Any:
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        parameters, state, _ = carry
        value, grads = value_and_grad(parameters, state=state)
        updates, state = solver.update(
            grads, state, parameters, value=value, grad=grads, value_fn=loss
        )
        parameters = optax.apply_updates(parameters, updates)
        return parameters, state, optax.tree.norm(optax.tree.get(state, "grad"))

    def unfinished(carry):
        _, state, norm = carry
        return (optax.tree.get(state, "count") < max_steps) & (norm >= tolerance)

    carry = (start, solver.init(start), jnp.asarray(jnp.inf))
    return jax.lax.while_loop(unfinished, step, carry)[0]
