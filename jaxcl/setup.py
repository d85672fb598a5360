"""Makes the `Setup` of a model, which strategies are built from, in any framework.

Your own training loop makes it here; this project's loop does too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxcl.assembly import (
    Heads,
    adapted,
    assembled,
    even_scenario,
    require_logits,
    shapes,
)
from jaxcl.nn import capture, inspection, treatment
from jaxcl.nn.capture import LinenModel
from jaxcl.nn.precision import compute_in
from jaxcl.types import AS_IT_IS, Codec, LayerSpec, Output, PyTree, Setup


def setup_for(
    forward: Callable[[PyTree, jax.Array], jax.Array],
    example: Any,
    *,
    num_outputs: int,
    num_tasks: int,
    heads: Heads,
    scenario: str = "domain",
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
      num_outputs: K; task- and class-incremental scenarios split it evenly.
      num_tasks: T.
      heads: path prefixes of the classifier's leaves in ``net``.
      scenario: one of `jaxcl.heads.SCENARIOS`.
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
      ValueError: unknown scenario; K that T tasks cannot share evenly; a head that
        matches no parameter; a model with another call signature.
    """

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
        like = shapes(example)
        require_logits(forward, (net, like), forward, num_outputs, like)
        layers = inspection.inspect(apply_fn, net, {}, shapes(example)).layers
    return assembled(
        apply_fn,
        example,
        even_scenario(scenario, num_tasks, num_outputs),
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
) -> Setup:
    """The `Setup` of a Flax NNX model.

    Args:
      model: an `nnx.Module` called as ``model(x) -> logits [B, K]``; its parameters and
        state are `jaxcl.nn.nnx.split`'s.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K; task- and class-incremental scenarios split it evenly.
      num_tasks: T.
      heads: paths of the classifier, ("head",) of ``model.head``.
      scenario: one of `jaxcl.heads.SCENARIOS`.

    Returns:
      A `Setup` with the model's layers and normalisations.

    Raises:
      ValueError: as `setup_for`.
    """
    from jaxcl.nn import nnx  # Linen users do not load it

    net, state = nnx.split(model)
    return adapted(
        nnx.apply_fn(model),
        (net, state),
        example,
        even_scenario(scenario, num_tasks, num_outputs),
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
) -> Setup:
    """The `Setup` of an Equinox model.

    Args:
      model: an `equinox.Module`, whole, called on one example, ``model(x) -> logits
        [K]`` or ``model(x, key=key)``. Its parameters are `jaxcl.nn.equinox.split`'s.
      example: an input batch, an array or a ShapeDtypeStruct.
      num_outputs: K; task- and class-incremental scenarios split it evenly.
      num_tasks: T.
      heads: paths of the classifier, ("layers", 2) of ``model.layers[2]``.
      scenario: one of `jaxcl.heads.SCENARIOS`.

    Returns:
      A `Setup` with the model's layers. Kernels are laid out [outputs, inputs].

    Raises:
      ValueError: as `setup_for`; a model with `equinox.nn.State`.
      ImportError: Equinox is not installed.
    """
    from jaxcl.nn import equinox  # an optional package

    return adapted(
        equinox.apply_fn(model),
        (equinox.split(model), {}),
        example,
        even_scenario(scenario, num_tasks, num_outputs),
        heads,
        type(model),
        axis=0,
    )


def setup_for_linen(
    model: LinenModel,
    example: jax.ShapeDtypeStruct,
    *,
    logit_mask: jax.Array,
    mask_by: str,
    heads: tuple[tuple[str, ...], ...] = (("head",),),
    codec: Codec = AS_IT_IS,
    dtype: str = "float32",
) -> Setup:
    """The `Setup` of a Flax Linen model.

    Args:
      model: called as ``model(x, task, train)``; see `jaxcl.nn.capture.apply_fn`.
      example: shape and dtype of an input batch.
      logit_mask: bool[T, K]; see `jaxcl.heads.scenario_mask`.
      mask_by: "example" or "task"; likewise.
      heads: path prefixes of the classifier's leaves.
      codec: how memories keep inputs.
      dtype: the dtype that the model computes in; see `jaxcl.nn.precision.compute_in`.

    Returns:
      A `Setup` with the model's layers and normalisations.

    Raises:
      ValueError: the model has parameters per task for fewer tasks than there are, has
        another call signature, or has no parameter that a head names; an unknown dtype.
    """
    num_tasks = logit_mask.shape[0]
    declared = getattr(model, "num_tasks", None)
    if declared is not None and declared < num_tasks:
        raise ValueError(
            f"the model has parameters for num_tasks={declared} tasks, the stream has "
            f"{num_tasks}"
        )
    net, state = jax.eval_shape(capture.init_fn(model, example), jax.random.key(0))
    found = inspection.describe_linen(model, example)
    return assembled(
        compute_in(dtype, capture.apply_fn(model)),
        example,
        (logit_mask, mask_by),
        heads,
        net,
        layers=found.layers,
        norms=found.norms,
        mixes_examples=getattr(model, "mixes_examples", False),
        codec=codec,
        model_state=state,
    )
