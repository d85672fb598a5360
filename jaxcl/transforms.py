"""Gradient transforms: ordinary optax, for any model and any training loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxcl.checks import require
from jaxcl.ops import gates
from jaxcl.ops.matching import (
    MISSING,
    flatten_up_to,
    is_masked,
    map_where_given,
    require_broadcast,
    require_extra,
    require_same_shapes,
)
from jaxcl.ops.projection import GIVEN, onto, remove, without_conflict
from jaxcl.types import PyTree


def project_out(
    given: str = "basis", *, axis: int | PyTree = -1
) -> optax.GradientTransformationExtraArgs:
    """Keeps the update of each leaf out of the leaf's subspace, if it has one.

    With G a leaf as a matrix [d, n] of d inputs and n outputs (see
    `jaxcl.ops.projection.remove`): G ← G − U Uᵀ G, or G − M G.

    The subspaces are an argument of ``update``, so one compiled step serves while they
    grow. Before an optimizer, gradients are projected; this keeps *parameters* out of
    the subspace only if the optimizer preserves linear subspaces, as SGD and momentum
    do (see `keeps_subspace`), and starts anew when the subspace grows. Last in the
    chain, the updates themselves are projected: exact whatever comes before.

    Args:
      given: what ``subspace`` holds: "basis", U [d, r] with orthonormal columns and any
        number of zero columns; or "projector", M = U Uᵀ [d, d].
      axis: the axis of a kernel over its outputs: -1, [..., outputs], as in Flax, or 0,
        [outputs, ...], as in Equinox and PyTorch; if leaves differ, a tree of these
        like ``subspace``.

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, subspace=tree)`` takes a tree like ``updates``
      with arrays for the leaves to treat and None for leaves, or whole subtrees, that
      pass. Dtypes stay.

    Raises:
      ValueError: an unknown `given`; on update, no subspace, one that does not fit its
        leaf, or a tree unlike the updates.

    Example:
      >>> import jax.numpy as jnp, optax, jaxcl
      >>> tx = optax.chain(jaxcl.transforms.project_out(), optax.sgd(1.0))
      >>> params = {"w": jnp.ones([2, 3]), "b": jnp.ones(3)}
      >>> used = {"w": jnp.array([[1.0], [0.0]]), "b": None}
      >>> step, _ = tx.update(params, tx.init(params), params, subspace=used)
      >>> params = optax.apply_updates(params, step)
      >>> params["w"].tolist(), params["b"].tolist()
      ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [0.0, 0.0, 0.0])

    Source: Saha et al., Gradient projection memory for continual learning, ICLR 2021,
    https://arxiv.org/abs/2103.09762, eqs. 6 and 7, on kernels laid out [inputs,
    outputs].
    """
    if given not in GIVEN:
        raise ValueError(f"given must be one of {', '.join(GIVEN)}, got {given!r}")

    def one(space, part, axis):
        return remove(part, space, given, axis)

    def update(updates, state, params=None, *, subspace: PyTree = MISSING, **extra):
        del params
        require_extra("project_out", "subspace", subspace, extra)
        return map_where_given(one, "subspace", subspace, updates, axis), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def project_onto(*, axis: int | PyTree = -1) -> optax.GradientTransformationExtraArgs:
    """Multiplies the update of each leaf by the leaf's projector, if any: G ← P G.

    With G a leaf as a matrix [d, n] of d inputs and n outputs; an HWIO kernel is
    [kh * kw * C, O]. P need not be a projector in the strict sense: OWM's shrinks each
    direction by how much of it is taken.

    Args:
      axis: the axis of a kernel over its outputs, as for `project_out`.

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, projector=tree)`` takes a tree like ``updates``
      with P [d, d] for the leaves to treat and None for leaves, or whole subtrees, that
      pass. Dtypes stay.

    Raises:
      ValueError: on update, no projector, one that does not fit its leaf, or a tree
        unlike the updates.

    Example:
      >>> import jax.numpy as jnp, optax, jaxcl
      >>> tx = optax.chain(jaxcl.transforms.project_onto(), optax.sgd(1.0))
      >>> params = {"w": jnp.ones([2, 3]), "b": jnp.ones(3)}
      >>> free = {"w": jnp.diag(jnp.array([0.0, 1.0])), "b": None}
      >>> step, _ = tx.update(params, tx.init(params), params, projector=free)
      >>> optax.apply_updates(params, step)["w"].tolist()
      [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]

    Source: Zeng et al., Continual learning of context-dependent processing in neural
    networks, Nature Machine Intelligence 2019, https://arxiv.org/abs/1810.01256, eq. 1,
    on kernels laid out [inputs, outputs].
    """

    def one(projector, part, axis):
        return onto(part, projector, axis)

    def update(updates, state, params=None, *, projector: PyTree = MISSING, **extra):
        del params
        require_extra("project_onto", "projector", projector, extra)
        return map_where_given(one, "projector", projector, updates, axis), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def project_conflicting() -> optax.GradientTransformationExtraArgs:
    """Removes the part of a gradient that would raise a reference loss, to first order.

    With g the whole tree as one vector and r the gradient of the reference loss:

        g ← g − (⟨g, r⟩/⟨r, r⟩) r   if ⟨g, r⟩ < 0,   else g as it is,

    after which ⟨g, r⟩ = 0. A reference of zero conflicts with nothing.

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, reference=tree)`` takes a tree of the structure
      and shapes of ``updates``; dtypes stay. Under `optax.masked` both vectors consist
      of the leaves that are not masked, and ``reference`` may be the whole tree.

    Raises:
      ValueError: on update, no reference, or one unlike the updates.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxcl
      >>> tx = optax.chain(jaxcl.transforms.project_conflicting(), optax.sgd(0.1))
      >>> new = lambda w: jnp.sum((w - jnp.array([1.0, -1.0])) ** 2)
      >>> old = lambda w: 2.0 * w[0] - 2.0 * w[1]
      >>> w = jnp.zeros(2)
      >>> g, r = jax.grad(new)(w), jax.grad(old)(w)
      >>> g.tolist(), r.tolist()  # they point against each other
      ([-2.0, 2.0], [2.0, -2.0])
      >>> step, _ = tx.update(g, tx.init(w), w, reference=r)
      >>> jnp.abs(step).tolist()  # all of it would have raised the old loss
      [0.0, 0.0]
      >>> step, _ = tx.update(g, tx.init(w), w, reference=jnp.array([0.0, -1.0]))
      >>> bool(jnp.allclose(step, jnp.array([0.2, 0.0])))
      True

    Source: Chaudhry et al., Efficient lifelong learning with A-GEM, ICLR 2019,
    https://arxiv.org/abs/1812.00420, eq. 11.
    """

    def update(updates, state, params=None, *, reference: PyTree = MISSING, **extra):
        del params
        require_extra("project_conflicting", "reference", reference, extra)
        leaves, tree = jax.tree.flatten(updates, is_leaf=is_masked)
        other = flatten_up_to(tree, reference, "reference", "updates")
        g = [leaf for leaf in leaves if not is_masked(leaf)]
        r = [o for o, leaf in zip(other, leaves, strict=True) if not is_masked(leaf)]
        require_same_shapes("reference", r, "the updates", g)
        rest = iter(without_conflict(g, r))
        new = [leaf if is_masked(leaf) else next(rest) for leaf in leaves]
        return jax.tree.unflatten(tree, new), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def mask_updates() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a mask: u ← m ⊙ u.

    Last in a chain, it holds whatever comes before: a weight with mask 0 does not move
    by momentum, Adam or weight decay, which move weights even if their *gradient* is
    zero, nor by NaN. Masks are an argument of ``update``: one compiled step serves all.

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, mask=tree)`` takes a tree like ``updates`` with
      arrays that broadcast against the leaves to treat, and None for leaves, or whole
      subtrees, that pass. On update, a ValueError without a mask, for a tree unlike
      the updates and for a mask that does not broadcast.

    Example:
      >>> import jax.numpy as jnp, optax, jaxcl
      >>> tx = optax.chain(optax.adamw(0.1), jaxcl.transforms.mask_updates())
      >>> params = {"w": jnp.ones(2), "b": jnp.ones(1)}
      >>> mask = {"w": jnp.array([1.0, 0.0]), "b": None}
      >>> step, _ = tx.update(params, tx.init(params), params, mask=mask)
      >>> bool(step["w"][1] == 0), bool(step["w"][0] < 0), bool(step["b"][0] < 0)
      (True, True, True)
    """

    def one(mask, part, axis):
        require_broadcast(mask, part)
        return jnp.where(mask == 0, 0, part * mask).astype(part.dtype)

    def update(updates, state, params=None, *, mask: PyTree = MISSING, **extra):
        del params
        require_extra("mask_updates", "mask", mask, extra)
        return map_where_given(one, "mask", mask, updates, -1), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def compensate(s_max: float) -> optax.GradientTransformationExtraArgs:
    """Undoes the effect of annealing the gates' slope on the embeddings' gradients.

    g ← g · (s_max/s) · (cosh(clip(s·e, ±50)) + 1)/(cosh(e) + 1); see
    `jaxcl.ops.gates.compensate`. Belongs before a clip and the optimizer.

    Args:
      s_max: the steepest slope, > 0.

    Returns:
      An optax transformation without state over a tree of embeddings alone (use
      `optax.masked` if there are other parameters); ``update(grads, state, params,
      s=slope)`` needs the embeddings and the slope that the gradients were taken at.

    Raises:
      ValueError: s_max or s is not greater than 0; no params, no s, or unlike updates.

    Source: Serrà et al., Overcoming catastrophic forgetting with hard attention to the
    task, 2018, https://arxiv.org/abs/1801.01423, eq. 6.
    """
    require(s_max > 0, f"s_max must be greater than 0, got {s_max}")

    def update(updates, state, params=None, *, s: float | jax.Array = MISSING, **extra):
        require_extra("compensate", "s", s, extra)
        told = "compensate needs the embeddings: update(..., params, s=s)"
        require(params is not None, told)
        require_same_shapes("updates", updates, "the embeddings", params)

        def one(g: jax.Array, e: jax.Array) -> jax.Array:
            return gates.compensate(g, e, s, s_max).astype(g.dtype)

        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
