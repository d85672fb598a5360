"""Makes the `Setup` of a model, which strategies are built from, in any framework.

Your own training loop makes it here; this project's loop does too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxcl.assembly import Heads, adapted, assembled, linen, shared_outputs
from jaxcl.checks import require
from jaxcl.kinds import require_instance
from jaxcl.nn import inspection, treatment
from jaxcl.nn.capture import LinenModel
from jaxcl.nn.fitting import require_logits, shape_of, shapes
from jaxcl.types import LayerSpec, Output, PyTree, Setup


def setup_for(
    forward: Callable[[PyTree, jax.Array], jax.Array],
    example: Any,
    *,
    num_outputs: int,
    num_tasks: int,
    heads: Heads,
    scenario: str = "domain",
    classes_per_task: Sequence[int] | None = None,
    net: PyTree | None = None,
    layers: tuple[LayerSpec, ...] = (),
    axis: int = -1,
    mixes_examples: bool = False,
) -> Setup:
    """The `Setup` of a model that is a pure function.

    Args:
      forward: ``(net, x) -> logits [B, K]``, any pure function. Methods that treat
        layers need it to compute them by `jaxcl.nn.dense` and `jaxcl.nn.conv`.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K ≥ 2.
      num_tasks: T.
      heads: path prefixes of the classifier's leaves in ``net``.
      scenario: one of `jaxcl.heads.SCENARIOS`.
      classes_per_task: task- and class-incremental: how many of the K outputs each task
        has, in their order; by default all the same number.
      net: the parameters, or their shapes. With them the layers are found, and heads
        and signature are checked here. Without them, heads are checked as soon as
        parameters are given.
      layers: the layers, if ``net`` is not given.
      axis: the axis over the outputs, for kernels that are in no layer: -1, or 0 for
        [outputs, inputs].
      mixes_examples: whether an example's logits depend on its batch, as in a network
        that normalises by the batch: features and gradients are then of whole batches.

    Returns:
      A `Setup`.

    Raises:
      ValueError: unknown scenario; K that T tasks cannot share; a head that matches
        no parameter; a model with another call signature, or that fails on the example,
        or does not give float logits [B, K]; an argument of another kind.
    """

    require(axis in (-1, 0), f"axis must be -1 or 0, got {axis}")
    mask = shared_outputs(scenario, num_tasks, num_outputs, classes_per_task)
    if isinstance(net, Mapping) and "params" in net and len(net) > 1:
        rest = ", ".join(sorted(map(str, net.keys() - {"params"})))
        raise ValueError(
            f"net has Flax's collection {rest} beside params, which would be trained: "
            "give net['params'] alone, or the module to jaxcl.setup_for_linen"
        )

    def apply_fn(net, model_state, x, task, key, train):
        with treatment.capturing() as capture:
            logits = forward(net, x)
        return Output(logits, model_state, capture.taps)

    if net is not None:
        net = shapes(net)
        like = shape_of(example)
        require_logits(forward, (net, like), forward, num_outputs, like)
        layers = inspection.inspect(apply_fn, net, {}, like).layers
    return assembled(
        apply_fn,
        example,
        mask,
        heads,
        net,
        layers=layers,
        axis=axis,
        mixes_examples=mixes_examples,
    )


def setup_for_nnx(
    model: Any,
    example: Any,
    *,
    num_outputs: int,
    num_tasks: int,
    heads: Heads,
    scenario: str = "domain",
    classes_per_task: Sequence[int] | None = None,
) -> Setup:
    """The `Setup` of a Flax NNX model.

    Args:
      model: an `nnx.Module` called as ``model(x) -> logits [B, K]``, with task and mode
        if it takes them; see `jaxcl.nn.calling.arguments`. Its parameters and state are
        `jaxcl.nn.nnx.split`'s.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K ≥ 2.
      num_tasks: T.
      heads: paths of the classifier, ("head",) of ``model.head``.
      scenario: one of `jaxcl.heads.SCENARIOS`.
      classes_per_task: task- and class-incremental: how many of the K outputs each task
        has, in their order; by default all the same number.

    Returns:
      A `Setup` with the model's layers and normalisations.

    Raises:
      ValueError: as `setup_for`.
    """
    from jaxcl.nn import nnx  # Linen users do not load it

    require_instance("model", model, nnx.nnx.Module)
    net, state = nnx.split(model)
    return adapted(
        nnx.apply_fn(model),
        (net, state),
        example,
        shared_outputs(scenario, num_tasks, num_outputs, classes_per_task),
        heads,
        type(model),
    )


def setup_for_equinox(
    model: Any,
    example: Any,
    *,
    num_outputs: int,
    num_tasks: int,
    heads: Heads,
    scenario: str = "domain",
    classes_per_task: Sequence[int] | None = None,
) -> Setup:
    """The `Setup` of an Equinox model.

    Args:
      model: an `equinox.Module`, whole, called on one example, ``model(x) -> logits
        [K]`` or ``model(x, key=key)``. Its parameters are `jaxcl.nn.equinox.split`'s.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K ≥ 2.
      num_tasks: T.
      heads: paths of the classifier, ("layers", 2) of ``model.layers[2]``.
      scenario: one of `jaxcl.heads.SCENARIOS`.
      classes_per_task: task- and class-incremental: how many of the K outputs each task
        has, in their order; by default all the same number.

    Returns:
      A `Setup` with the model's layers. Kernels are laid out [outputs, inputs].

    Raises:
      ValueError: as `setup_for`; a model with `equinox.nn.State`.
      ImportError: Equinox is not installed.
    """
    from jaxcl.nn import equinox  # an optional package

    require_instance("model", model, equinox.eqx.Module)
    return adapted(
        equinox.apply_fn(model),
        (equinox.split(model), {}),
        example,
        shared_outputs(scenario, num_tasks, num_outputs, classes_per_task),
        heads,
        type(model),
        axis=0,
    )


def setup_for_linen(
    model: LinenModel,
    example: Any,
    *,
    num_outputs: int,
    num_tasks: int,
    heads: Heads,
    scenario: str = "domain",
    classes_per_task: Sequence[int] | None = None,
) -> Setup:
    """The `Setup` of a Flax Linen model.

    Args:
      model: a `flax.linen.Module` called as ``model(x) -> logits [B, K]``, with
        task and mode if it takes them; see `jaxcl.nn.calling.arguments`. Its parameters
        are ``model.init(...)["params"]``.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K ≥ 2.
      num_tasks: T.
      heads: paths of the classifier, ("head",) of a module with that name.
      scenario: one of `jaxcl.heads.SCENARIOS`.
      classes_per_task: task- and class-incremental: how many of the K outputs each task
        has, in their order; by default all the same number.

    Returns:
      A `Setup` with the model's layers and normalisations.

    Raises:
      ValueError: as `setup_for`; the model has parameters for fewer tasks than T.
    """
    require_instance("model", model, LinenModel)
    mask = shared_outputs(scenario, num_tasks, num_outputs, classes_per_task)
    return linen(model, example, mask, heads)
