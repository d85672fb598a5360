"""Gradient transforms: ordinary optax, for any model and any training loop."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.checks import require
from jaxcl.ops import gates
from jaxcl.ops.linalg import EXACT
from jaxcl.ops.trees import tree_dot
from jaxcl.types import PyTree, Strategy

GIVEN = ("basis", "projector")


def remove(update: jax.Array, subspace: jax.Array, given: str = "basis") -> jax.Array:
    """Removes from an array its component in a subspace of its rows' space.

    With G the array as a matrix [d, n], n its last axis: G − U (Uᵀ G) for a basis U,
    G − M G for a projector M.

    Args:
      update: [..., n] with d = the product of the leading axes; an HWIO kernel becomes
        [kh * kw * C, O].
      subspace: U [d, r], orthonormal columns and zero columns, or M [d, d].
      given: which, "basis" or "projector".

    Returns:
      An array like ``update``.

    Raises:
      ValueError: the subspace lies in a space of another dimension.
    """
    d = update.size // update.shape[-1] if update.ndim > 1 else 0
    shape = subspace.shape
    if subspace.ndim != 2 or shape[0] != d or (given == "projector" and shape[1] != d):
        raise ValueError(
            f"a {given} of shape {list(shape)} does not fit an array of shape "
            f"{list(update.shape)}, a matrix of {d} rows"
        )
    matrix = update.reshape(d, -1)
    inside = matrix
    if given == "basis":
        inside = jnp.matmul(subspace.T, inside, precision=EXACT)
    inside = jnp.matmul(subspace, inside, precision=EXACT)
    return (matrix - inside).reshape(update.shape)


def project_out(given: str = "basis") -> optax.GradientTransformationExtraArgs:
    """Keeps updates out of a subspace that each leaf may have.

    With G a leaf as a matrix [d, n] (see `remove`): G ← G − U Uᵀ G, or G − M G.

    The subspaces are an argument of ``update``, so that one compiled step serves while
    they grow. Put before an optimizer it projects gradients, which keeps *parameters*
    out of the subspace only under SGD, momentum and what else preserves a linear
    subspace (see `keeps_subspace`); put last in the chain it projects what moves, which
    is exact whatever comes before.

    Args:
      given: what ``subspace`` holds: "basis", U [d, r] with orthonormal columns, padded
        with zero columns at will; or "projector", M = U Uᵀ [d, d].

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, subspace=tree)`` takes a tree like ``updates``
      with arrays for the leaves to treat and None for leaves, or whole subtrees, that
      pass.

    Raises:
      ValueError: an unknown `given`; on update, a subspace that does not fit its leaf.

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

    def update(updates, state, params=None, *, subspace: PyTree, **extra):
        del params, extra

        def one(space, part):
            return part if space is None else remove(part, space, given)

        return jax.tree.map(one, subspace, updates, is_leaf=lambda s: s is None), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def project_onto() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a projector that each leaf may have: G ← P G.

    With G a leaf as a matrix [d, n], n its last axis; an HWIO kernel is
    [kh * kw * C, O]. P need not be a projector in the strict sense: OWM's shrinks each
    direction by how much of it is taken.

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, projector=tree)`` takes a tree like ``updates``
      with P [d, d] for the leaves to treat and None for leaves, or whole subtrees, that
      pass.

    Raises:
      ValueError: on update, a P that does not fit its leaf.

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

    def one(projector, part):
        if projector is None:
            return part
        d = part.size // part.shape[-1] if part.ndim > 1 else 0
        if projector.shape != (d, d):
            raise ValueError(
                f"a projector of shape {list(projector.shape)} does not fit an array "
                f"of shape {list(part.shape)}, a matrix of {d} rows"
            )
        moved = jnp.matmul(projector, part.reshape(d, -1), precision=EXACT)
        return moved.reshape(part.shape)

    def update(updates, state, params=None, *, projector: PyTree, **extra):
        del params, extra
        new = jax.tree.map(one, projector, updates, is_leaf=lambda p: p is None)
        return new, state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def project_conflicting() -> optax.GradientTransformationExtraArgs:
    """Removes from a gradient what would raise, to first order, a reference loss.

    With g the whole tree as one vector and r the gradient of the reference loss:

        g ← g − (⟨g, r⟩/⟨r, r⟩) r   if ⟨g, r⟩ < 0,   else g as it is,

    after which ⟨g, r⟩ = 0. A reference of zero conflicts with nothing.

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, reference=tree)`` takes a tree of the structure
      and shapes of ``updates``; dtypes stay.

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

    def update(updates, state, params=None, *, reference: PyTree, **extra):
        del params, extra
        along = tree_dot(updates, reference)

        def part() -> jax.Array:
            length = tree_dot(reference, reference)
            return jnp.where(length > 0, along / jnp.where(length > 0, length, 1), 0)

        # Most steps do not conflict: spare them a pass over the reference.
        share = jax.lax.cond(along < 0, part, lambda: jnp.zeros_like(along))
        return jax.tree.map(lambda g, r: g - share * r, updates, reference), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def keeps_subspace(optimizer: optax.GradientTransformation) -> bool:
    """Whether an optimizer's updates stay in any subspace its gradients stay in.

    Found by trial: a few steps on gradients orthogonal to a random direction, at
    parameters that are not, must give updates orthogonal to it. True of SGD, momentum,
    schedules and clipping by norm; false of Adam and whatever else scales coordinates
    apart, of clipping by value, of weight decay and of noise.

    Args:
      optimizer: any optax transformation; it is called with an extra argument
        ``value``, as those that search a line want.

    Returns:
      A Python bool. Must not be called inside jit.
    """
    rng = np.random.default_rng(0)
    tx = optax.with_extra_args_support(optimizer)
    params = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    normal = rng.normal(size=6)
    normal /= np.linalg.norm(normal)
    state = tx.init(params)
    for scale in (1e-2, 1.0, 1e2, 1.0):
        grads = scale * rng.normal(size=(6, 5))
        grads -= np.outer(normal, normal @ grads)
        updates, state = tx.update(
            jnp.asarray(grads, jnp.float32), state, params, value=jnp.zeros(())
        )
        leak = np.linalg.norm(normal @ np.asarray(updates, np.float64))
        if leak > 1e-5 * np.linalg.norm(updates):
            return False
        params = optax.apply_updates(params, updates)
    return True


def warn_unless_linear(
    strategy: Strategy, optimizer: optax.GradientTransformation
) -> None:
    """Warns if a strategy that projects gradients protects nothing under an optimizer.

    Args:
      strategy: judged by its field ``needs_linear``.
      optimizer: the one that receives the projected gradients.
    """
    if not strategy.needs_linear:
        return
    try:
        kept = keeps_subspace(optimizer)
    except Exception as error:  # it may want the parameters it was written for
        warnings.warn(
            "this strategy projects gradients; whether this optimizer's updates stay "
            f"in the subspace of its gradients could not be tried: {error}",
            stacklevel=3,
        )
        return
    if not kept:
        warnings.warn(
            "this strategy projects gradients, and this optimizer's updates leave the "
            "subspace that its gradients lie in (as Adam's and weight decay do): "
            'earlier tasks are not protected; use where="updates", or plain SGD with '
            "or without momentum",
            stacklevel=3,
        )


def mask_updates() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a mask: u ← m ⊙ u.

    Put last in a chain it holds whatever comes before: a weight of mask 0 does not move
    under momentum, Adam or weight decay, which move weights whose *gradient* is zero.
    Masks are an argument of ``update``, so that one compiled step serves all tasks.

    Returns:
      An optax transformation without state whose
      ``update(updates, state, params, mask=tree)`` takes a tree like ``updates`` with
      arrays that broadcast against the leaves to treat, and None for leaves, or whole
      subtrees, that pass. On update, a ValueError for a mask that does not broadcast.

    Example:
      >>> import jax.numpy as jnp, optax, jaxcl
      >>> tx = optax.chain(optax.adamw(0.1), jaxcl.transforms.mask_updates())
      >>> params = {"w": jnp.ones(2), "b": jnp.ones(1)}
      >>> mask = {"w": jnp.array([1.0, 0.0]), "b": None}
      >>> step, _ = tx.update(params, tx.init(params), params, mask=mask)
      >>> bool(step["w"][1] == 0), bool(step["w"][0] < 0), bool(step["b"][0] < 0)
      (True, True, True)
    """

    def one(mask, part):
        if mask is None:
            return part
        sides = zip(mask.shape[::-1], part.shape[::-1], strict=False)
        if mask.ndim > part.ndim or any(m not in (1, p) for m, p in sides):
            raise ValueError(
                f"a mask of shape {list(mask.shape)} does not broadcast against an "
                f"update of shape {list(part.shape)}"
            )
        return part * mask.astype(part.dtype)

    def update(updates, state, params=None, *, mask: PyTree, **extra):
        del params, extra
        return jax.tree.map(one, mask, updates, is_leaf=lambda m: m is None), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def compensate(s_max: float) -> optax.GradientTransformationExtraArgs:
    """Undoes what annealing the gates' slope does to the embeddings' gradients.

    g ← g · (s_max/s) · (cosh(clip(s·e, ±50)) + 1)/(cosh(e) + 1); see
    `jaxcl.ops.gates.compensate`. Belongs before a clip and the optimizer.

    Args:
      s_max: the steepest slope, > 0.

    Returns:
      An optax transformation without state over a tree of embeddings alone (use
      `optax.masked` for one among other parameters); ``update(grads, state, params,
      s=slope)`` needs the embeddings and the slope that the gradients were taken at.

    Raises:
      ValueError: s_max is not greater than 0; on update, no params.

    Source: Serrà et al., Overcoming catastrophic forgetting with hard attention to the
    task, 2018, https://arxiv.org/abs/1801.01423, eq. 6.
    """
    require(s_max > 0, f"s_max must be greater than 0, got {s_max}")

    def update(updates, state, params=None, *, s: float | jax.Array, **extra):
        del extra
        if params is None:
            raise ValueError(
                "compensate needs the embeddings: update(..., params, s=s)"
            )
        new = jax.tree.map(
            lambda g, e: gates.compensate(g, e, s, s_max), updates, params
        )
        return new, state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
