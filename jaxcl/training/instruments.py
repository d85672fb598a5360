"""The instruments of `jaxcl.features` in a run: one compilation for all tasks.

Each measurement is a function of one seed's state and data, and runs over all seeds as
training does. So features leave the devices only if they are compared later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import features
from jaxcl.heads import shared_weights
from jaxcl.hooks import hook_in
from jaxcl.inputs import context_of
from jaxcl.predicting import make_forward
from jaxcl.training.answers import make_confusion, make_told
from jaxcl.training.epoch import make_update
from jaxcl.training.measures import OUTPUTS, own_measures
from jaxcl.training.observation import by_unit, taps_of
from jaxcl.training.probing import enough, probes, sample
from jaxcl.training.problem import PerSeed, Problem, setup_of, strategy_for
from jaxcl.training.schedule import task_length
from jaxcl.training.seeds import SeedMesh
from jaxcl.training.state import SeedState
from jaxcl.training.trainer import scale_by_lr
from jaxcl.types import Batch, PyTree


class Instruments(NamedTuple):
    """Compiled functions of all seeds, each ``(state, per seed, shared) -> result``.

    ``count`` and ``current`` are int32[]: the number of tasks looked at, and the last
    task trained.
    """

    measure: Callable[..., Any]  # (seed, mine, (base, count, current)) -> quantities
    ranks: Callable[..., Any]  # (seed, mine, (base, task)) -> layer -> float32[]
    first: Callable[..., Any]  # (seed, mine, (base, current)) -> layer -> [N, D]
    compare: Callable[..., Any]  # (features, features, ()) -> quantities
    # (seed, (mine, cache), (base, task, epochs done)) -> quantities
    conflict: Callable[..., Any]


def make_instruments(
    problem: Problem,
    mesh: SeedMesh,
    *,
    names: tuple[str, ...],
    layers: tuple[str, ...] = (),
    examples: int = 1000,
) -> Instruments:
    """Compiles the measurements of a network during a run.

    Args:
      problem: the problem that is trained.
      mesh: where the seeds run.
      names: some of `jaxcl.training.measures.NAMES`, or import paths of functions.
      layers: the layers whose features are measured; all if none is named.
      examples: N training and N test examples of each task, the same at all times; at
        most as many as every task has.

    Returns:
      The `Instruments`. Quantities are NaN for a seed that has failed.

    Raises:
      ValueError: an unknown name or layer; fewer than 10 examples, or a task with too
        few of them; "told" in a run that is not class-incremental.
    """
    own = own_measures(names)
    if examples < 10:
        raise ValueError(f"feature_examples must be at least 10, got {examples}")
    stream, setup = problem.stream, setup_of(problem)
    taps = taps_of(setup, layers) if set(names) - {*OUTPUTS} or layers else {}
    accuracy_told = make_told(problem) if "told" in names else None
    confusion = make_confusion(problem) if "confusion" in names else None
    fewest = enough(problem, names)
    num_classes = int(np.asarray(stream.logit_mask).sum(1).max())

    def batch_of(base, mine: PerSeed, part: str, task: jax.Array) -> Batch:
        data = stream.view(base, mine.data, part, task)
        return sample(data, min(examples, fewest[part]))

    def see(seed: SeedState, mine: PerSeed, batch: Batch, current) -> dict[str, Any]:
        strategy = strategy_for(problem, setup, **mine.settings)
        forward = make_forward(setup, strategy)
        of_seed = (seed.params, seed.model_state, seed.strategy_state)
        out = forward(*of_seed, batch, current)
        return {name: out.taps[tap] for name, tap in taps.items()}

    def local(mine: PerSeed, task: jax.Array, y: jax.Array) -> jax.Array:
        """Labels as places among the task's own outputs."""
        label = mine.data.label[task]
        at = jnp.where(label < 0, stream.num_outputs, label)
        own = jnp.zeros(stream.num_outputs, jnp.int32).at[at].set(1, mode="drop")
        return (jnp.cumsum(own) - 1)[y]

    def on_task(seed, mine, base, task, current) -> PyTree:
        test = batch_of(base, mine, problem.measure, task)
        seen, y = see(seed, mine, test, current), local(mine, task, test.y)
        found: dict[str, dict[str, jax.Array]] = {}
        if "rank" in names:
            for layer, x in seen.items():
                ranks = features.ranks(x)
                found.setdefault("effective_rank", {})[layer] = ranks.effective
                found.setdefault("stable_rank", {})[layer] = ranks.stable
                found.setdefault("energy_rank", {})[layer] = ranks.energy
                units = by_unit(setup, taps[layer], x)
                dormant = features.dormant_share(units)
                found.setdefault("dormant_share", {})[layer] = dormant
        if "probes" in names or "multinomial" in names:
            train = batch_of(base, mine, "train", task)
            given = see(seed, mine, train, current)
            given_y = local(mine, task, train.y)
            for layer, x in given.items():
                for kind, probe in probes(names, x, given_y, num_classes).items():
                    right = features.accuracy(probe, seen[layer], y)
                    found.setdefault(kind, {})[layer] = right
        for quantity, measure_of in own.items():
            found[quantity] = {
                layer: measure_of(by_unit(setup, taps[layer], x), y)
                for layer, x in seen.items()
            }
        if accuracy_told:
            right = accuracy_told(seed, mine, base, task, current)
            found["accuracy_told"] = {"outputs": right}
        return jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), found)

    def known(seed: SeedState, found: PyTree) -> PyTree:
        failed = seed.progress.failed
        return jax.tree.map(lambda v: jnp.where(failed, jnp.nan, v), found)

    def measure(seed, mine, shared):
        base, count, current = shared

        def at(task):
            def look():
                return on_task(seed, mine, base, task, current)

            def skip():
                shapes = jax.eval_shape(look)
                return jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan), shapes)

            return jax.lax.cond(task < count, look, skip)

        found = jax.lax.map(at, jnp.arange(stream.num_tasks))
        if confusion:
            found["confusion"] = {"outputs": confusion(seed, mine, base, current)}
        return known(seed, found)

    def ranks(seed, mine, shared):
        base, task = shared
        seen = see(seed, mine, batch_of(base, mine, problem.measure, task), task)
        return known(seed, {k: features.effective_rank(x) for k, x in seen.items()})

    def first(seed, mine, shared):
        base, current = shared
        batch = batch_of(base, mine, problem.measure, jnp.zeros((), jnp.int32))
        seen = see(seed, mine, batch, current)
        return known(seed, {k: x.reshape(len(x), -1) for k, x in seen.items()})

    def compare(now, then, shared):
        found = {}
        if "cka" in names:
            found["cka"] = {
                k: features.linear_cka(now[k], then[k], debiased=True) for k in now
            }
        if "drift" in names:
            found["feature_drift"] = {
                k: features.feature_drift(then[k], now[k]) for k in now
            }
        return found

    def conflict(seed, given, shared):
        (mine, cache), (base, task, epoch) = given, shared
        strategy = strategy_for(problem, setup, **mine.settings)
        forward = make_forward(setup, strategy)

        def gradient(batch: Batch) -> PyTree:
            def loss(net):
                params = seed.params._replace(net=net)
                given = (params, seed.model_state, seed.strategy_state)
                return setup.task_loss(forward(*given, batch, task).logits, batch, task)

            return shared_weights(setup, jax.grad(loss)(seed.params.net))

        tx = hook_in(strategy, optax.chain(problem.optimizer, scale_by_lr()), setup)
        update = make_update(setup, strategy, tx)
        batch = batch_of(base, mine, "train", task)
        if problem.joint:  # the cache is of all tasks' examples, in another order
            batch = batch._replace(index=jnp.full_like(batch.index, -1))
        size = stream.view(base, mine.data, "train", task, problem.joint).size
        per_epoch = (size + problem.plan.batch_size - 1) // problem.plan.batch_size
        length = task_length(problem.plan, task, per_epoch)
        ctx = context_of(  # of an epoch's first step
            batch,
            task=task,
            key=jax.random.key(0),
            step=seed.progress.step,
            epoch=epoch,
            epoch_progress=0.0,
            epoch_fraction=0.0,
            task_progress=seed.progress.step / length,
            model_state=seed.model_state,
            cache=cache,
        )
        updates, *_ = update(seed.params, seed.opt_state, ctx, seed.progress.lr_scale)
        new = gradient(batch)
        step = jax.tree.map(jnp.negative, shared_weights(setup, updates.net))

        def with_old(old):
            def look():
                g = gradient(batch_of(base, mine, "train", old))
                return features.cosine(new, g), features.cosine(step, g)

            nan = jnp.full((), jnp.nan)
            return jax.lax.cond(old < task, look, lambda: (nan, nan))

        of_gradient, of_step = jax.lax.map(with_old, jnp.arange(stream.num_tasks))
        found = {"conflict_gradient": of_gradient, "conflict_step": of_step}
        return known(seed, found)

    over = mesh.over_seeds
    return Instruments(
        measure=over(measure, "features"),
        ranks=over(ranks, "feature_ranks"),
        first=over(first, "first_features"),
        compare=over(compare, "compare_features"),
        conflict=over(conflict, "conflict"),
    )
