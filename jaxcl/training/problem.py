"""What a run is a function of, and the functions of all its seeds that makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl.data.scenarios import Lane as View
from jaxcl.data.scenarios import Stream
from jaxcl.heads import cross_entropy
from jaxcl.nn import capture, inspection
from jaxcl.training import trainer as training
from jaxcl.training.plan import Plan
from jaxcl.training.seeds import Lanes
from jaxcl.types import Setup, Strategy


class Problem(NamedTuple):
    """Everything a run is a function of.

    Attributes:
      model: a Flax Linen module, called with ``(x, task, train)``.
      stream: the tasks of every seed.
      seeds: S of them, distinct unless `rates` or `settings` tell them apart.
      make_strategy: ``(setup, **settings) -> Strategy``.
      optimizer: restarted at each task.
      plan: how a task is trained.
      joint: each task trains on all data so far.
      measure: "test", or "valid": the accuracy matrix that settings are chosen by.
      lanes: one of `jaxcl.training.seeds.MODES`.
      rates: what the optimizer's updates are multiplied by, one for each seed.
      settings: name -> values, one for each seed, of the strategy's settings that
        differ between seeds. They are traced: several settings of a method are trained
        at once, in one compilation, as further lanes beside the seeds.
    """

    model: nn.Module
    stream: Stream
    seeds: tuple[int, ...]
    make_strategy: Callable[..., Strategy]
    optimizer: optax.GradientTransformation
    plan: Plan
    joint: bool = False
    measure: str = "test"
    lanes: str = "auto"
    rates: tuple[float, ...] = ()
    settings: Mapping[str, tuple[float, ...]] = {}


class Own(NamedTuple):
    """What is a seed's own and stays; with a leading [S] for all of them."""

    seed: jax.Array  # uint32[]
    data: View
    rate: jax.Array  # float32[]
    settings: dict[str, jax.Array]  # float32[] each


def own(problem: Problem) -> Own:
    """Host arrays [S, ...] of every seed."""
    rates = problem.rates or (1.0,) * len(problem.seeds)
    return Own(
        seed=np.asarray(problem.seeds, np.uint32),
        data=problem.stream.lanes,
        rate=np.asarray(rates, np.float32),
        settings={k: np.asarray(v, np.float32) for k, v in problem.settings.items()},
    )


def make_setup(model: nn.Module, stream: Stream, batch_size: int) -> Setup:
    """The `Setup` of a shipped or a user's Linen model on a stream.

    Raises:
      ValueError: the model has parameters of their own for fewer tasks than there are.
    """
    declared = getattr(model, "num_tasks", None)
    if declared is not None and declared < stream.num_tasks:
        raise ValueError(
            f"the model has parameters for num_tasks={declared} tasks, the stream has "
            f"{stream.num_tasks}"
        )
    example = jax.ShapeDtypeStruct((batch_size, *stream.input_shape), jnp.float32)
    return Setup(
        apply_fn=capture.apply_fn(model),
        task_loss=cross_entropy(stream.logit_mask, stream.mask_by),
        layers=inspection.describe(model, example),
        heads=(("head",),),
        logit_mask=stream.logit_mask,
        mask_by=stream.mask_by,
        num_tasks=stream.num_tasks,
        example=example,
        mixes_examples=getattr(model, "mixes_examples", False),
        codec=stream.codec,
        model_state=jax.eval_shape(capture.init_fn(model, example), jax.random.key(0))[
            1
        ],
        norms=inspection.describe_norms(model, example),
    )


def check(problem: Problem) -> None:
    """Builds everything but trains nothing: raises what `run` would raise at once.

    Raises:
      ValueError: the problem contradicts itself, with the value and the rule.
    """
    stream, plan = problem.stream, problem.plan
    plan.check(has_validation=bool(stream.capacity("valid")))
    if problem.measure not in ("test", "valid"):
        raise ValueError(f"measure must be test or valid, got {problem.measure!r}")
    if not stream.capacity(problem.measure):
        raise ValueError("measure='valid' needs valid_fraction above 0")
    varied = {"rates": problem.rates} if problem.rates else {}
    varied |= problem.settings
    for name, values in varied.items():
        if len(values) != len(problem.seeds):
            raise ValueError(
                f"{name} has {len(values)} values for {len(problem.seeds)} seeds"
            )
    told_apart = list(zip(problem.seeds, *varied.values(), strict=True))
    if len(set(told_apart)) != len(told_apart):
        raise ValueError(f"seeds must be distinct, got {problem.seeds}")
    Lanes(len(problem.seeds), problem.lanes)
    setup = make_setup(problem.model, stream, plan.batch_size)
    for i in range(len(problem.seeds) if problem.settings else 1):
        chosen = {name: values[i] for name, values in problem.settings.items()}
        problem.make_strategy(setup, **chosen).check(problem.optimizer)


class Compiled(NamedTuple):
    """The trainer's functions over all seeds: ``(state, mine, shared) -> result``.

    ``own`` is an `Own`, ``base`` the stream's `Base`, ``task`` and ``epoch`` int32[].
    """

    init: Callable[..., Any]  # ((), own, ()) -> lane
    begin: Callable[..., Any]  # (lane, (own, real), ()) -> lane
    prepare: Callable[..., Any]  # (lane, own, (base, task)) -> cache
    epoch: Callable[..., Any]  # (lane, (own, cache), (base, task, epoch, longest))
    end: Callable[..., Any]  # (lane, (own, cache), (base, task)) -> lane
    evaluate: Callable[..., Any]  # (lane, own, (base, task)) -> accuracies [T]
    report: Callable[..., Any]  # (lane, own, ()) -> name -> scalar


def compiled(problem: Problem, lanes: Lanes) -> Compiled:
    """The trainer's functions over all seeds; each is traced once for all tasks."""
    stream, plan, joint = problem.stream, problem.plan, problem.joint
    setup = make_setup(problem.model, stream, plan.batch_size)
    validates = bool(stream.capacity("valid"))

    def build(settings: dict[str, jax.Array]) -> training.Trainer:
        return training.make_trainer(
            setup,
            problem.make_strategy(setup, **settings),
            problem.optimizer,
            plan,
            capture.init_fn(problem.model, setup.example),
            masked=lanes.mode == "vmap",
        )

    same = None if problem.settings else build({})

    def trainer(own: Own) -> training.Trainer:
        return same or build(own.settings)

    def key(seed, task):
        # Stream 0 of a seed is its initialisation, stream t + 1 its task t.
        return jax.random.fold_in(jax.random.key(seed), task + 1)

    def init(_, own, shared):
        return trainer(own).init(key(own.seed, -1))

    def begin(lane, mine, shared):
        own, real = mine
        return trainer(own).begin(lane, real, own.rate)

    def prepare(lane, own, shared):
        base, task = shared
        data = stream.view(base, own.data, "train", task, joint)
        return trainer(own).prepare(lane, data)

    def epoch(lane, mine, shared):
        (own, cache), (base, task, number, longest) = mine, shared
        return trainer(own).epoch(
            lane,
            cache,
            stream.view(base, own.data, "train", task, joint),
            stream.view(base, own.data, "valid", task, joint) if validates else None,
            task,
            number,
            jax.random.fold_in(key(own.seed, task), 0),
            longest,
        )

    def end(lane, mine, shared):
        (own, cache), (base, task) = mine, shared
        data = stream.view(base, own.data, "train", task, joint)
        end_key = jax.random.fold_in(key(own.seed, task), 1)
        return trainer(own).end(lane, cache, data, task, end_key)

    def evaluate(lane, own, shared):
        base, current = shared

        def on(task):
            data = stream.view(base, own.data, problem.measure, task)
            return trainer(own).evaluate(lane, data, current)[0]

        return jax.lax.map(on, jnp.arange(stream.num_tasks))

    def report(lane, own, shared):
        return trainer(own).report(lane)

    over = lanes.over_seeds
    return Compiled(
        init=over(init, "init"),
        begin=over(begin, "begin", donate=True),
        prepare=over(prepare, "prepare"),
        epoch=over(epoch, "epoch", donate=True),
        end=over(end, "end", donate=True),
        evaluate=over(evaluate, "evaluate"),
        report=over(report, "report"),
    )


def can_trace(problem: Problem) -> bool:
    """Whether the strategy does with its `Problem.settings` traced.

    A setting that decides a shape, a branch or a loop has to be a number: runs that
    differ in it cannot share a compilation. Traces a task, computes nothing.
    """
    lanes = Lanes(len(problem.seeds), problem.lanes)
    fns = compiled(problem, lanes)
    mine, base = lanes.spread(own(problem)), problem.stream.base
    zero = np.int32(0)
    try:
        lane = jax.eval_shape(fns.init, (), mine, ())
        lane = jax.eval_shape(fns.begin, lane, (mine, lanes.real), ())
        cache = jax.eval_shape(fns.prepare, lane, mine, (base, zero))
        of_task = (base, zero, zero, zero)
        lane, _ = jax.eval_shape(fns.epoch, lane, (mine, cache), of_task)
        jax.eval_shape(fns.end, lane, (mine, cache), (base, zero))
        jax.eval_shape(fns.evaluate, lane, mine, (base, zero))
    except TypeError:  # JAX's errors about tracers are of this kind
        return False
    return True
