"""The plane through three networks' weights, and where other weights lie in it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.ops.matching import require_same_shapes
from jaxcl.types import PyTree

_ON_A_LINE = 1e-5  # relative length below which a vector is only float32 rounding


class Plane(NamedTuple):
    """A plane in the space of weights; its trees have the same structure."""

    origin: PyTree
    first: PyTree  # of length 1
    second: PyTree  # of length 1 and at right angles to `first`; 0 if there is no plane


class Place(NamedTuple):
    """The position of weights relative to a plane."""

    coordinates: jax.Array  # float32[2], of the nearest point of the plane
    outside: jax.Array  # float32[], share in [0, 1]


def plane_through(a: PyTree, b: PyTree, c: PyTree) -> Plane:
    """The plane through three networks' weights, its axes by Gram–Schmidt.

    e₁ = (b − a)/‖b − a‖, e₂ = r/‖r‖ with r = (c − a) − ((c − a)·e₁) e₁: a lies at
    (0, 0), b at (‖b − a‖, 0) and c above the first axis. Coordinates are distances.

    Args:
      a: the origin, a tree of floats.
      b: of a's structure and shapes.
      c: likewise.

    Returns:
      A `Plane`; an axis is 0 if the points lie on one line.

    Raises:
      ValueError: trees that do not fit each other.

    Source: Garipov et al., Loss surfaces, mode connectivity, and fast ensembling of
    DNNs, NeurIPS 2018, https://arxiv.org/abs/1802.10026, appendix; between tasks:
    Mirzadeh et al., ICLR 2021, https://arxiv.org/abs/2010.04495.
    """
    require_same_shapes("b", b, "a", a)
    require_same_shapes("c", c, "a", a)
    first = _unit(_minus(b, a), 0.0)
    whole = _minus(c, a)
    rest = _without(whole, first)
    # Once more: if c − a is nearly parallel to e₁, the rest is mostly rounding.
    rest = _without(rest, first)
    return Plane(a, first, _unit(rest, _ON_A_LINE * jnp.sqrt(_dot(whole, whole))))


def point_of(plane: Plane, coordinates: jax.Array) -> PyTree:
    """The weights at a point of a plane: a + x e₁ + y e₂.

    Args:
      plane: from `plane_through`.
      coordinates: float[2].

    Returns:
      Weights of the origin's structure, shapes and dtypes.
    """
    x, y = coordinates

    def leaf(o, u, v):
        return (o + x * u + y * v).astype(o.dtype)

    return jax.tree.map(leaf, plane.origin, plane.first, plane.second)


def place_in(plane: Plane, weights: PyTree) -> Place:
    """The nearest point of a plane, and the share of the way that leads out of it.

    With r = w − a: coordinates (r·e₁, r·e₂), outside ‖r − (r·e₁) e₁ − (r·e₂) e₂‖² /
    ‖r‖², 0 at the origin itself: where ‖r‖ ≤ 1e-5 ‖a‖, the way is only float32 rounding
    and has no direction.

    Args:
      plane: from `plane_through`.
      weights: of the origin's structure and shapes.

    Returns:
      A `Place`; NaN where the weights are.

    Raises:
      ValueError: weights that do not fit the plane's.
    """
    require_same_shapes("weights", weights, "the plane's origin", plane.origin)
    way = _minus(weights, plane.origin)
    x, y = _dot(way, plane.first), _dot(way, plane.second)
    rest = jax.tree.map(
        lambda r, u, v: r - x * u - y * v, way, plane.first, plane.second
    )
    length = _dot(way, way)
    # Two programs that train the same first task end apart by their rounding.
    here = length <= _ON_A_LINE**2 * _dot(plane.origin, plane.origin)
    outside = jnp.where(here, 0, _dot(rest, rest) / jnp.maximum(length, 1e-37))
    return Place(jnp.stack([x, y]), outside)


def _minus(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(
        lambda u, v: jnp.asarray(u, jnp.float32) - jnp.asarray(v, jnp.float32), a, b
    )


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    each = jax.tree.map(lambda u, v: jnp.sum(u * v), a, b)
    return jax.tree.reduce(jnp.add, each, jnp.zeros(()))


def _without(a: PyTree, unit: PyTree) -> PyTree:
    along = _dot(a, unit)
    return jax.tree.map(lambda u, v: u - along * v, a, unit)


def _unit(a: PyTree, least: jax.Array | float) -> PyTree:
    """A vector scaled to length 1, or 0 if its length is at most `least`."""
    length = jnp.sqrt(_dot(a, a))
    factor = jnp.where(length > least, 1 / jnp.maximum(length, 1e-37), 0)
    return jax.tree.map(lambda u: factor * u, a)
