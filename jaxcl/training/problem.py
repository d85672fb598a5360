"""Defines a run: the model, the tasks, the seeds, and how each task is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import schema
from jaxcl.assembly import adapted, linen
from jaxcl.contract import Strategy
from jaxcl.data.stream import SeedView, Stream
from jaxcl.heads import shares_all_outputs, with_gradient
from jaxcl.linearity import warn_unless_linear
from jaxcl.nn import capture
from jaxcl.nn.building import Built
from jaxcl.nn.capture import LinenModel
from jaxcl.training import room
from jaxcl.training.plan import Measured, Plan, validate_plan
from jaxcl.training.seeds import SeedMesh
from jaxcl.training.trainer import make_trainer
from jaxcl.types import PyTree, Setup


class Problem(NamedTuple):
    """Everything that the result of a run depends on.

    Attributes:
      model: a Flax Linen module, called as `jaxcl.nn.calling` says, or an NNX or
        Equinox model given by its class.
      stream: the tasks of every seed.
      seeds: S numbers, distinct unless `rates` or `settings` differ.
      make_strategy: ``(setup, **settings) -> Strategy``.
      optimizer: restarted at the start of each task.
      plan: how each task is trained.
      joint: each task trains on the data of all tasks so far.
      joint_once: joint only: one training, on the data of all tasks at once and at the
        first task's rate. Only the last row of the accuracy matrix is filled.
      measure: "test", or "valid" for an accuracy matrix to choose settings by.
      measure_tasks: `Measured`: after each task "all", or "seen", those so far
        and the next, which forward transfer needs; the others are NaN.
      seed_mode: one of `jaxcl.training.seeds.MODES`.
      rates: factors for the optimizer's updates, one for each seed.
      settings: name -> values, one for each seed, of the strategy's settings that
        differ between seeds. They are traced, so several settings of a method are
        trained at once, in one compilation, as further seeds.
      heads: paths of the classifier in the model's parameters.
      dtype: the dtype that the model computes in; see `jaxcl.nn.precision.compute_in`.
    """

    model: LinenModel | Built
    stream: Stream
    seeds: tuple[int, ...]
    make_strategy: Callable[..., Strategy]
    optimizer: optax.GradientTransformation
    plan: Plan
    joint: bool = False
    joint_once: bool = False
    measure: str = "test"
    measure_tasks: str = "all"
    seed_mode: str = "auto"
    rates: tuple[float, ...] = ()
    settings: Mapping[str, tuple[float, ...]] = {}
    heads: tuple[tuple[str, ...], ...] = (("head",),)
    dtype: str = "float32"


def strategy_for(problem: Problem, setup: Setup, **settings: Any) -> Strategy:
    """The strategy that trains.

    Joint training's batches hold rows of other tasks, as those of replay in a chain do.
    """
    made = problem.make_strategy(setup, **settings)
    return (made.beside or made) if problem.joint else made


class PerSeed(NamedTuple):
    """Constants that differ between seeds; with a leading [S] for all seeds."""

    seed: jax.Array | np.ndarray  # uint32[]
    data: SeedView
    rate: jax.Array | np.ndarray  # float32[]
    settings: dict[str, jax.Array | np.ndarray]  # float32[] each


def per_seed(problem: Problem) -> PerSeed:
    """Host arrays [S, ...] of every seed."""
    rates = problem.rates or (1.0,) * len(problem.seeds)
    return PerSeed(
        seed=np.asarray(problem.seeds, np.uint32),
        data=problem.stream.per_seed,
        rate=np.asarray(rates, np.float32),
        settings={k: np.asarray(v, np.float32) for k, v in problem.settings.items()},
    )


def make_setup(
    model: LinenModel | Built,
    stream: Stream,
    batch_size: int,
    heads: tuple[tuple[str, ...], ...] = (("head",),),
    dtype: str = "float32",
) -> Setup:
    """The `Setup` of a model on a stream.

    Raises:
      ValueError: as `jaxcl.setup_for_linen`.
    """
    example = jax.ShapeDtypeStruct((batch_size, *stream.input_shape), jnp.float32)
    if isinstance(model, Built):
        setup = adapted(
            model.apply_fn(),
            jax.eval_shape(model.init, jax.random.key(0)),
            example,
            (stream.logit_mask, stream.mask_by),
            heads,
            model.build,
            axis=model.axis,
            codec=stream.codec,
            dtype=dtype,
        )
    else:
        mask = (stream.logit_mask, stream.mask_by)
        setup = linen(model, example, mask, heads, codec=stream.codec, dtype=dtype)
    return setup._replace(
        augmentation=stream.augmentation, num_classes=stream.num_classes
    )


def setup_of(problem: Problem) -> Setup:
    """The `Setup` of a problem's model on its stream.

    Raises:
      ValueError: as `jaxcl.setup_for_linen`.
    """
    return make_setup(
        problem.model,
        problem.stream,
        problem.plan.batch_size,
        problem.heads,
        problem.dtype,
    )


def init_of(problem: Problem) -> Callable[[jax.Array], tuple[PyTree, PyTree]]:
    """``key -> (net, model_state)`` of a problem's model."""
    if isinstance(problem.model, Built):
        return problem.model.init
    shape = (problem.plan.batch_size, *problem.stream.input_shape)
    return capture.init_fn(problem.model, jax.ShapeDtypeStruct(shape, jnp.float32))


def validate(problem: Problem) -> None:
    """Raises the errors that `jaxcl.training.protocol.run` would; trains nothing.

    Raises:
      ValueError: the problem contradicts itself; the message gives value and rule.
    """
    stream, plan = problem.stream, problem.plan
    validate_plan(plan, has_validation=bool(stream.capacity("valid")))
    if problem.measure not in ("test", "valid"):
        raise ValueError(f"measure must be test or valid, got {problem.measure!r}")
    schema.require("measure_tasks", problem.measure_tasks, Measured)
    if not stream.capacity(problem.measure):
        raise ValueError("measure='valid' needs valid_fraction above 0")
    if problem.joint_once and not problem.joint:
        raise ValueError("joint_once=True needs joint=True")
    schema.require("rates", problem.rates, tuple[schema.NonNegative, ...])
    if problem.rates and plan.lr_floor:
        raise ValueError(
            f"lr_floor={plan.lr_floor} is a rate, and rates={problem.rates} would "
            "multiply it: use lr_floor=0, or a problem for each rate"
        )
    kept = len(stream.per_seed.label)
    if len(problem.seeds) != kept:
        raise ValueError(
            f"seeds must be as many as the stream's, {kept}, got {problem.seeds}"
        )
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
    mesh = SeedMesh(len(problem.seeds), problem.seed_mode)
    room.require_batches_fit(problem.model, stream, plan, problem.measure)
    init = init_of(problem)
    net, model_state = jax.eval_shape(init, jax.random.key(0))
    room.require_weights_fit(problem.model, net, len(problem.seeds))
    setup = setup_of(problem)
    if not shares_all_outputs(setup):  # heads not in play are held still: which?
        jax.eval_shape(partial(with_gradient, setup), net)
    together = mesh.padded if mesh.mode == "vmap" else mesh.mesh.size
    room.require_activations_fit(setup, net, model_state, together)
    _require_batches_to_normalise(setup, stream, plan)
    for i in range(len(problem.seeds) if problem.settings else 1):
        chosen = {name: values[i] for name, values in problem.settings.items()}
        strategy = strategy_for(problem, setup, **chosen)
        if problem.joint_once and strategy.needs_every_task:
            raise ValueError(
                "joint_once=True trains once, on all tasks: the method must be trained "
                "on the first task, or see the end of each; use joint_once=False"
            )
        if i == 0:
            warn_unless_linear(strategy, problem.optimizer, setup)
            trainer = make_trainer(
                setup, strategy, problem.optimizer, plan, init, masked=False
            )
            room.require_states_fit(trainer, len(problem.seeds))


def _require_batches_to_normalise(setup: Setup, stream: Stream, plan: Plan) -> None:
    """Refuses batches of one example if a network normalises by the batch.

    One example is its own mean: a dense layer's output is normalised to zeros, and a
    convolution's output loses the mean and spread of the image.

    Raises:
      ValueError: there is such a batch; the message names the normalisation.
    """
    fewest = int(np.diff(np.asarray(stream.per_seed.train.offset)).min())
    for norm in setup.norms:
        sizes = {}
        if norm.kind in ("batch", "batch_current", "batch_per_task"):
            sizes["batch_size"] = plan.batch_size
            sizes["the number of a task's training examples"] = fewest
        if norm.kind == "batch_current":
            sizes["eval_batch_size"] = plan.eval_batch_size
        for name, size in sizes.items():
            if size < 2:
                raise ValueError(
                    f"{name} must be at least 2 where {norm.name!r} normalises by the "
                    f"batch (kind {norm.kind!r}), got {size}: one example has no "
                    "statistics; use norm 'none', 'group' or 'layer'"
                )
