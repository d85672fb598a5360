"""Elastic weight consolidation.

Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017,
https://arxiv.org/abs/1612.00796. Online form: Schwarz et al., Progress & Compress,
2018, https://arxiv.org/abs/1805.06370. Kinds of Fisher: Kunstner et al., Limitations of
the empirical Fisher approximation, 2019, https://arxiv.org/abs/1905.12558.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.checks import require
from jaxcl.contract import Strategy, strategy
from jaxcl.heads import mask_logits
from jaxcl.losses import quadratic
from jaxcl.ops.sampling import batch_positions, shuffled
from jaxcl.ops.trees import anchored, zeros_wide
from jaxcl.schema import Count, NonNegative, OneOf, Share, checked
from jaxcl.strategies._per_example import make_pass
from jaxcl.types import Batch, PyTree, Setup, TaskData

FISHERS = ("exact", "sampled", "empirical")


class EWCState(NamedTuple):
    """One quadratic: ½λ (Σᵢ importanceᵢ (θᵢ − anchorᵢ)² + offset)."""

    importance: PyTree  # like net
    anchor: PyTree  # like net
    offset: jax.Array  # float32[]


def fisher_diagonal(
    setup: Setup,
    net: PyTree,
    model_state: PyTree,
    data: TaskData,
    task: jax.Array,
    key: jax.Array,
    *,
    kind: str,
    samples: int,
    chunk: int,
) -> PyTree:
    """Diagonal of the Fisher information, a mean over *per-example* squared gradients.

    exact:     F = 1/n Σ_x Σ_y p(y|x) (∂ log p(y|x)/∂θ)²
    sampled:   the inner expectation by one draw y ~ p(·|x)
    empirical: y is the data's label

    The network is in evaluation mode. Squaring the gradient of a batch's mean loss, as
    several libraries do, gives another, smaller quantity that depends on the batch.

    Args:
      setup: gives the apply function and the logit mask.
      net: parameters.
      model_state: running statistics.
      data: the task's examples.
      task: int32[] the current task.
      key: chooses the examples and, for "sampled", the labels.
      kind: one of `FISHERS`.
      samples: at most this many examples; all if the task has fewer.
      chunk: examples in one backward pass; a convolution holds the gradient of each.

    Returns:
      A tree like ``net``.

    Raises:
      ValueError: an unknown kind.
    """
    require(kind in FISHERS, f"kind must be one of {', '.join(FISHERS)}, got {kind!r}")
    order_key, label_key = jax.random.split(key)
    order = shuffled(order_key, data.size, data.capacity)
    n = jnp.minimum(samples, data.size)
    apply_fn = data.forward(setup.apply_fn)

    run = make_pass(setup, apply_fn, net, model_state, label_key, jnp.square)
    # Only outputs in play: the others have no probability.
    mask = np.asarray(setup.logit_mask)
    outputs = np.argsort(~mask, axis=1, kind="stable")[:, : mask.sum(1).max()]

    def squares(batch: Batch, i: jax.Array) -> PyTree:
        """Σ_b weight_b E_y (∂ log p(y|x_b)/∂θ)²."""
        made = run(batch)

        def log_probs(logits):
            return jax.nn.log_softmax(mask_logits(setup, logits, batch.task, task))

        def of_labels(label, weight):
            def chosen(logits):
                picked = jnp.take_along_axis(log_probs(logits), label[:, None], 1)
                return picked.sum()

            return made.sums(jax.grad(chosen)(made.logits), weight)

        if kind == "empirical":
            return of_labels(batch.y, batch.weight)
        logp = log_probs(made.logits)
        if kind == "sampled":
            draw_key = jax.random.fold_in(label_key, i)
            return of_labels(jax.random.categorical(draw_key, logp), batch.weight)
        rows = (
            batch.task if setup.mask_by == "example" else jnp.full_like(batch.y, task)
        )
        p = jnp.exp(logp)

        def of_class(total, label):
            label = label[rows]
            chance = jnp.take_along_axis(p, label[:, None], 1)[:, 0]
            return optax.tree.add(total, of_labels(label, batch.weight * chance)), None

        total, _ = jax.lax.scan(of_class, zeros_wide(net), jnp.asarray(outputs.T))
        return total

    def body(i, total):
        position, weight = batch_positions(order, i, chunk, n)
        return optax.tree.add(
            total, squares(data.take(position)._replace(weight=weight), i)
        )

    zeros = zeros_wide(net)
    total = jax.lax.fori_loop(0, (n + chunk - 1) // chunk, body, zeros)
    return jax.tree.map(lambda t: t / n, total)


def merge_quadratics(state: EWCState, importance: PyTree, anchor: PyTree) -> EWCState:
    """Adds Σ gᵢ (θᵢ − aᵢ)² to a quadratic: the sum of two quadratics is one.

    F' = F + g,  m' = m + g/F' (a − m),  offset' = offset + Σ F g/F' (a − m)²

    So a penalty over any number of tasks needs the memory and time of a single one, and
    is exactly the sum of the penalties of all tasks.
    """
    total = optax.tree.add(state.importance, importance)
    share = jax.tree.map(lambda g, f: g / jnp.where(f > 0, f, 1.0), importance, total)
    # Exactly a if nothing was held before: a head counts as not in play only if it is
    # exactly at its anchor, where the penalty has no gradient.
    moved = jax.tree.map(
        lambda m, s, a: jnp.where(s == 1, a, m + s * (a - m)),
        state.anchor,
        share,
        anchor,
    )
    spread = jax.tree.map(
        lambda f, s, a, m: jnp.sum(f * s * (a - m) ** 2),
        state.importance,
        share,
        anchor,
        state.anchor,
    )
    return EWCState(total, moved, state.offset + sum(jax.tree.leaves(spread)))


@checked
def ewc(
    setup: Setup,
    *,
    strength: NonNegative,
    fisher: Annotated[str, OneOf(FISHERS)] = "empirical",
    online: bool = False,
    decay: Share = 1.0,
    decay_penalty: bool = False,
    samples: Count = 2000,
    chunk: Count = 16,
) -> Strategy:
    """Penalises moving weights that earlier tasks' predictions depend on.

    separate: L = L_task + λ/2 Σ_{t' < t} Σᵢ Fᵢ^{t'} (θᵢ − θᵢ^{t'})²
    online:   L = L_task + λ/2 c Σᵢ F̃ᵢ (θᵢ − θᵢ^{t−1})²,  F̃ ← γ F̃ + F

    with c = 1, or c = γ if the penalty decays too.

    Args:
      setup: the run's `Setup`.
      strength: λ ≥ 0; 0 is fine-tuning. λ does not carry over between codes, which
        scale F and the penalty differently: search over powers of ten.
      fisher: "exact", "sampled" or "empirical"; see `fisher_diagonal`.
      online: one running Fisher and the last task's weights as anchor.
      decay: γ in [0, 1], online only.
      decay_penalty: online only; True multiplies the penalty by γ, as Progress &
        Compress and van de Ven's code do: the Fisher of n tasks ago has weight γⁿ, so
        the last task's has γ, not 1. At γ = 1 the two forms are the same.
      samples: examples per task for the Fisher.
      chunk: examples in one backward pass; a convolution holds the gradient of each.

    Returns:
      A `Strategy` with an `EWCState`. The separate form also holds one quadratic, not
      one per task; see `merge_quadratics`.

    Raises:
      ValueError: an argument out of range, named with its value.

    Differs from the paper in the default Fisher, "empirical", which takes the data's
    labels ("exact" and "sampled" are the definition's), and in taking at most `samples`
    examples; from Avalanche, FACIL, PyCIL and others in squaring gradients per example.
    """
    if decay != 1 and not online:
        raise ValueError(f"ewc: decay {decay} needs online=True")
    if decay_penalty and not online:
        raise ValueError("ewc: decay_penalty=True needs online=True")
    weight = strength * decay if decay_penalty else strength

    def init(params):
        return EWCState(zeros_wide(params.net), anchored(params.net), jnp.zeros(()))

    def penalty(params, state, *, task):
        return quadratic(
            params.net,
            anchor=state.anchor,
            importance=state.importance,
            offset=state.offset,
            strength=weight,
        )

    def after_task(params, state, *, data, model_state, task, key):
        new = fisher_diagonal(
            setup,
            params.net,
            model_state,
            data,
            task,
            key,
            kind=fisher,
            samples=samples,
            chunk=chunk,
        )
        if online:
            kept = jax.tree.map(lambda f: decay * f, state.importance)
            total = optax.tree.add(kept, new)
            return params, EWCState(total, anchored(params.net), state.offset)
        return params, merge_quadratics(state, new, anchored(params.net))

    return strategy(init=init, penalty=penalty, after_task=after_task)
