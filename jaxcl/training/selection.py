"""The end of an epoch: the best weights, patience, and seeds that have diverged."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcl.ops.trees import tree_where
from jaxcl.training.plan import Plan
from jaxcl.training.state import SeedState


def select(
    plan: Plan,
    seed: SeedState,
    accuracy: jax.Array,
    loss: jax.Array,
    trained: jax.Array,
) -> SeedState:
    """Keeps the best weights; decays the rate of a seed that has stalled.

    Args:
      plan: gives the metrics and patience.
      seed: the seed's state after the epoch.
      accuracy: float32[] on the validation data.
      loss: float32[] on the validation data.
      trained: bool[] whether the seed took a step in this epoch.
    """
    p = seed.progress
    scores = {"accuracy": accuracy, "loss": -loss}
    score, followed = scores[plan.select_metric], scores[plan.patience_metric]
    better = trained & (score > p.best_score)
    progressed = trained & (followed > p.patience_score)
    bad = jnp.where(progressed, 0, p.bad_epochs + 1)
    lr_scale, done = p.lr_scale, p.done
    if plan.patience is not None:
        decay = trained & (bad >= plan.patience)
        lr_scale = jnp.where(decay, lr_scale / plan.lr_factor, lr_scale)
        bad = jnp.where(decay, 0, bad)
        done = done | (decay & (plan.lr * lr_scale < plan.lr_min))
    best = seed.best
    if plan.select == "best":
        best = tree_where(better, (seed.params, seed.model_state), best)
    return seed._replace(
        best=best,
        progress=p._replace(
            lr_scale=lr_scale,
            best_score=jnp.where(better, score, p.best_score),
            patience_score=jnp.where(progressed, followed, p.patience_score),
            bad_epochs=jnp.where(trained, bad, p.bad_epochs),
            done=done,
        ),
    )


def mark_failure(
    seed: SeedState,
    total_loss: jax.Array,
    trained: jax.Array,
    task: jax.Array,
    epoch: jax.Array,
) -> SeedState:
    """Freezes a seed whose loss or weights are not finite, and records when.

    Args:
      seed: the seed's state after the epoch.
      total_loss: float32[] sum of the epoch's losses.
      trained: bool[] whether the seed took a step in this epoch.
      task: int32[].
      epoch: int32[].
    """
    # A sum of squares overflows before a weight does, so test the weights themselves.
    finite = [jnp.isfinite(p).all() for p in jax.tree.leaves(seed.params)]
    healthy = jnp.isfinite(total_loss) & jnp.stack(finite).all()
    p = seed.progress
    failed = trained & ~healthy & ~p.failed
    return seed._replace(
        progress=p._replace(
            done=p.done | failed,
            failed_task=jnp.where(failed, task, p.failed_task),
            failed_epoch=jnp.where(failed, epoch, p.failed_epoch),
        )
    )
