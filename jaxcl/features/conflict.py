"""Whether the gradients of two tasks conflict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxcl.features.matrix import or_one
from jaxcl.ops.matching import require_same_shapes
from jaxcl.types import PyTree


def cosine(a: PyTree, b: PyTree) -> jax.Array:
    """The cosine between two gradients, each a tree taken as one vector.

    ⟨a, b⟩ / (‖a‖ ‖b‖). Below 0, a step along one is a step against the other: tasks
    conflict. To see the effect of a method's transform, compare an old task's gradient
    with the new task's gradient and with the step −u that is taken.

    Args:
      a: a tree of arrays.
      b: a tree of the same structure and shapes.

    Returns:
      float32[] in [−1, 1]; 0 if one of the gradients is 0.

    Raises:
      ValueError: the trees differ in structure or in a shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxcl.features import cosine
      >>> g = {"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
      >>> h = {"w": jnp.array([0.0, 1.0]), "b": jnp.array(-1.0)}
      >>> round(float(cosine(g, h)), 4)
      -0.5657
    """
    require_same_shapes("b", b, "a", a)
    a, b = (jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), t) for t in (a, b))
    # Scaled first: squares of gradients of 1e-20 are 0 in float32.
    a, b = _scaled(a), _scaled(b)
    norm = optax.tree.norm(a) * optax.tree.norm(b)
    return jnp.clip(optax.tree.vdot(a, b) / or_one(norm), -1, 1)


def _scaled(tree: PyTree) -> PyTree:
    sizes = [jnp.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(tree)]
    size = jnp.max(jnp.array(sizes), initial=0)
    return jax.tree.map(lambda leaf: leaf / or_one(size), tree)
