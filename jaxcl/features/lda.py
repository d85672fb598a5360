"""Linear discriminant analysis as a probe: one Gaussian per class, one covariance."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxcl.features.matrix import labelled
from jaxcl.features.probes import Probe
from jaxcl.ops.discriminant import (
    absorb,
    discriminant,
    half_gram,
    no_means,
    whole_gram,
)
from jaxcl.ops.linalg import EXACT
from jaxcl.schema import Count, Shrinkage, checked


@checked
def lda(
    x: jax.Array, y: jax.Array, *, num_classes: Count, shrinkage: Shrinkage = 1e-4
) -> Probe:
    """Class means and a covariance that all classes share, as a linear probe.

    argmax_k −½ (x − m_k)ᵀ A⁻¹ (x − m_k),  A = (1 − ε) Σ + ε I

    with the class means m_k and the covariance Σ within classes, both of all examples
    at once. The strategy `slda` would give the same answers if no feature had moved
    since its task.

    Args:
      x: float[N, ...] features; later axes are flattened to D.
      y: int[N] classes from 0.
      num_classes: K. A class without examples is never predicted.
      shrinkage: ε in (0, 1].

    Returns:
      A `Probe`; its ``strength`` is ε.

    Raises:
      ValueError: x and y differ in length; classes that are no whole numbers in [0, K);
        the shrinkage is outside (0, 1].
    """
    return _lda(
        *labelled(x, y, num_classes), jnp.asarray(shrinkage, jnp.float32), num_classes
    )


@partial(jax.jit, static_argnums=3)
def _lda(x, y, shrinkage, num_classes: int) -> Probe:
    start = no_means(num_classes, x.shape[1])
    means, rows = absorb(start, x, y, jnp.ones(len(x)))
    head = discriminant(means, whole_gram(half_gram(rows)), shrinkage)
    offset = jnp.matmul(head.centre, head.weights, precision=EXACT)
    seen = means.count > 0
    bias = jnp.where(seen, head.bias - offset, head.bias)
    return Probe(head.weights, bias, shrinkage)
