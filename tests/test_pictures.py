"""The plane and the attention: their pure parts in float64, and their commands."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxcl import features


def tree(rng, scale=1.0):
    shapes = {"head": {"kernel": (3, 4)}, "conv": {"kernel": (5, 2, 2), "bias": (2,)}}
    return jax.tree.map(
        lambda shape: np.float32(scale * rng.normal(size=shape)),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def flat(weights):
    return np.concatenate([np.float64(v).ravel() for v in jax.tree.leaves(weights)])


def axes_of(a, b, c):
    """Gram–Schmidt in float64."""
    first = (b - a) / np.linalg.norm(b - a)
    rest = (c - a) - (c - a) @ first * first
    return first, rest / np.linalg.norm(rest)


@pytest.mark.parametrize("apart", [1.0, 1e-3], ids=["apart", "nearly on a line"])
def test_plane_coordinates_and_the_share_outside(apart):
    rng = np.random.default_rng(0)
    a, b, w = tree(rng), tree(rng), tree(rng)
    c = jax.tree.map(lambda u, v, t: u + 2 * (v - u) + apart * t, a, b, tree(rng))
    plane = features.plane_through(a, b, c)
    e1, e2 = axes_of(flat(a), flat(b), flat(c))
    tolerance = {"atol": 2e-6 / apart, "rtol": 2e-6}
    np.testing.assert_allclose(flat(plane.first), e1, atol=1e-6)
    np.testing.assert_allclose(flat(plane.second), e2, **tolerance)
    for point in (a, b, c, w):
        r = flat(point) - flat(a)
        rest = r - r @ e1 * e1 - r @ e2 * e2
        outside = rest @ rest / (r @ r) if (r @ r) else 0.0
        found = jax.jit(features.place_in)(plane, point)
        size = {"atol": 1e-5 / apart, "rtol": 1e-5}
        np.testing.assert_allclose(found.coordinates, (r @ e1, r @ e2), **size)
        np.testing.assert_allclose(found.outside, outside, atol=1e-6 + 1e-8 / apart)
    assert outside > 0.5  # w's, which was drawn freely


def test_a_point_of_the_plane_is_where_it_is_said_to_be():
    rng = np.random.default_rng(1)
    corners = [tree(rng) for _ in range(3)]
    plane = features.plane_through(*corners)
    for corner in corners:
        there = features.point_of(plane, features.place_in(plane, corner).coordinates)
        np.testing.assert_allclose(flat(there), flat(corner), atol=2e-6)
    e1, e2 = axes_of(*map(flat, corners))
    there = flat(features.point_of(plane, np.float32([-0.5, 2.0])))
    np.testing.assert_allclose(there, flat(corners[0]) - 0.5 * e1 + 2 * e2, atol=3e-6)


def test_three_points_on_a_line_give_no_second_axis():
    a = tree(np.random.default_rng(2))
    b = jax.tree.map(lambda v: 1.5 * v, a)
    c = jax.tree.map(lambda v: -0.3 * v, a)
    assert not flat(features.plane_through(a, b, c).second).any()
    assert not flat(features.plane_through(a, a, c).first).any()


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_spearmans(ties):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 2, 5, 7, 6))
    b += a * np.arange(5)[:, None, None]
    if ties:
        a, b = np.round(a), np.round(b)
    found = jax.jit(features.rank_correlation)(np.float32(a), np.float32(b))
    for i in np.ndindex(2, 5):
        x, y = np.float32(a[i]).ravel(), np.float32(b[i]).ravel()
        expected = stats.spearmanr(np.float64(x), np.float64(y)).statistic
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert np.ptp(found) > 0.5


def test_rank_correlation_of_equal_opposite_and_flat_maps():
    a = np.float32(np.random.default_rng(4).normal(size=(2, 3, 3)))
    np.testing.assert_allclose(features.rank_correlation(a, 3 * a + 1), 1, atol=1e-6)
    np.testing.assert_allclose(features.rank_correlation(a, -a), -1, atol=1e-6)
    assert np.isnan(features.rank_correlation(a, np.zeros_like(a))).all()
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) and \(3, 3\)"):
        features.rank_correlation(a, a[0])
