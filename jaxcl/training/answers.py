"""What a network answers during a run: told the task, and one class for another."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.heads import mask_logits
from jaxcl.predicting import make_forward
from jaxcl.training.evaluation import (
    make_evaluate,
    over_examples,
    require_apart,
    told,
)
from jaxcl.training.problem import Problem, setup_of, strategy_for
from jaxcl.types import Batch


def make_told(problem: Problem) -> Callable[..., jax.Array]:
    """Builds the accuracy of a class-incremental network as if the task were told.

    Returns:
      ``(seed, per seed, base, task, current task) -> float32[]``, on all of a task's
      examples.

    Raises:
      ValueError: another scenario.
    """
    require_apart(problem.stream)
    setup = told(setup_of(problem))

    def accuracy(seed, mine, base, task, current) -> jax.Array:
        strategy = strategy_for(problem, setup_of(problem), **mine.settings)
        evaluate = make_evaluate(setup, strategy, problem.plan.eval_batch_size)
        data = problem.stream.view(base, mine.data, problem.measure, task)
        return evaluate(seed, data, current)[0]

    return accuracy


def make_confusion(problem: Problem) -> Callable[..., jax.Array]:
    """Builds the confusion matrix of a network over the tasks so far.

    Returns:
      ``(seed, per seed, base, current task) -> float32[K, K]``: the share of the
      examples of output y that are answered as output k, in row y and column k. Its
      diagonal is the accuracy of each class. NaN: an output without examples so far.
    """
    setup = setup_of(problem)
    k = setup.logit_mask.shape[1]

    def confusion(seed, mine, base, current) -> jax.Array:
        strategy = strategy_for(problem, setup, **mine.settings)
        forward = make_forward(setup, strategy)
        of_seed = (seed.params, seed.model_state, seed.strategy_state)

        def count(batch: Batch) -> jax.Array:
            out = forward(*of_seed, batch, current)
            logits = mask_logits(setup, out.logits, batch.task, current)
            counts = jnp.zeros((k, k), jnp.float32)
            return counts.at[batch.y, logits.argmax(-1)].add(batch.weight)

        def add(task, total):
            data = problem.stream.view(base, mine.data, problem.measure, task)
            size = problem.plan.eval_batch_size
            return over_examples(setup, size, data, count, total)

        zeros = jnp.zeros((k, k), jnp.float32)
        total = jax.lax.fori_loop(0, current + 1, add, zeros)
        n = total.sum(1, keepdims=True)
        return jnp.where(n > 0, total / jnp.maximum(n, 1), jnp.nan)

    return confusion
