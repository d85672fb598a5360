"""Rotated images: the angles of tasks, and the rotation on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.checks import require


class Angles(NamedTuple):
    """The angle of task t = 0, 1, …: ``step · t + U(draw)``, or a list; in degrees.

    Attributes:
      given: one angle per task, the same for every seed; other fields are then unused.
      step: difference from one task to the next.
      draw: (low, high) of an angle drawn per task and seed and added; None: no draw.
      first: the first task's angle, instead of the rule's; None: the rule's.
    """

    given: tuple[float, ...] | None = None
    step: float = 0.0
    draw: tuple[float, float] | None = None
    first: float | None = None

    def of_seed(self, rng: np.random.Generator, num_tasks: int) -> np.ndarray:
        """One seed's angles, float32[T]."""
        angle = self.step * np.arange(num_tasks)
        if self.given is not None:
            angle = np.array(self.given, float)
        if self.draw is not None:
            angle = angle + rng.uniform(*self.draw, num_tasks)
        if self.first is not None:
            angle[0] = self.first
        return angle.astype(np.float32)


def require_no_angles(angles: Angles, kind: str) -> None:
    """Refuses angles of a stream that is not rotated.

    Raises:
      ValueError: the message names the setting and its value.
    """
    names = ("angles", "angle_step", "angle_draw", "first_angle")
    for name, value, default in zip(names, angles, Angles(), strict=True):
        require(
            value == default, f"{name} is for rotated streams, not {kind}, got {value}"
        )


def require_angles(angles: Angles, num_tasks: int) -> None:
    """Refuses angles that contradict each other, or that rotate nothing.

    Raises:
      ValueError: a rule is broken; the message gives values and rule.
    """
    given, step, draw, first = angles
    require(
        given is not None or step or draw is not None,
        "a rotated stream needs angles, angle_step or angle_draw",
    )
    require(
        given is None or (not step and draw is None and first is None),
        f"angles {given} are all there is to say: angle_step {step}, angle_draw {draw} "
        f"and first_angle {first} are for streams without them",
    )
    require(
        given is None or len(given) == num_tasks,
        f"angles must be one per task, {num_tasks}, got {given}",
    )
    require(
        draw is None or (len(draw) == 2 and draw[0] <= draw[1]),
        f"angle_draw must be (low, high), got {draw}",
    )
    require(
        given is None or any(given),
        f"angles must rotate a task at least, got {given}",
    )
    last = abs(step) * (num_tasks - 1) + max(map(abs, draw or (0.0,)))
    require(
        last <= float(np.finfo(np.float32).max),
        f"angle_step must leave the angles of {num_tasks} tasks finite in float32, got "
        f"{step:g}" + (f" and angle_draw {draw}" if draw else ""),
    )


def rotate(x: jax.Array, angle: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Rotates images about their centre, counter-clockwise; new pixels are 0.

    Bilinear. Whole numbers are rounded to whole numbers, as in a file of a rotated
    image.

    Args:
      x: [B, H·W·C] pixels.
      angle: float32[], or float32[B] with one per image, in degrees.
      shape: (H, W, C).

    Returns:
      float32 [B, H·W·C].
    """
    if angle.ndim:
        index, weight = jax.vmap(lambda a: _corners(a, shape))(angle)
        corners = [jnp.take_along_axis(x, index[:, k], axis=1) for k in range(4)]
        parts = [corner * weight[:, k] for k, corner in enumerate(corners)]
    else:  # one map for all: gathering whole columns is cheaper
        index, weight = _corners(angle, shape)
        parts = [x.T[index[k]].T * weight[k] for k in range(4)]
    turned = parts[0] + parts[1] + parts[2] + parts[3]
    whole = jnp.issubdtype(x.dtype, jnp.integer)
    return jnp.round(turned) if whole else turned


def _corners(angle: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Where each pixel comes from: int32[4, H·W·C] and their float32 weights."""
    height, width, channels = shape
    radians = jnp.deg2rad(angle)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    middle = (height - 1) / 2, (width - 1) / 2
    down = jnp.arange(height, dtype=jnp.float32)[:, None] - middle[0]
    right = jnp.arange(width, dtype=jnp.float32)[None] - middle[1]
    row = sin * right + cos * down + middle[0]
    column = cos * right - sin * down + middle[1]
    top, left = jnp.floor(row), jnp.floor(column)
    index, weight = [], []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = (top + i).astype(jnp.int32), (left + j).astype(jnp.int32)
        share = (1 - jnp.abs(row - r)) * (1 - jnp.abs(column - c))
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        r, c = jnp.clip(r, 0, height - 1), jnp.clip(c, 0, width - 1)
        pixel = ((r * width + c)[..., None] * channels + jnp.arange(channels)).ravel()
        index.append(pixel)
        weight.append(jnp.repeat(jnp.where(inside, share, 0).ravel(), channels))
    return jnp.stack(index), jnp.stack(weight)
