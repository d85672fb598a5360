"""Builds a `Setup` from a model's apply function; all of `jaxcl.setup` uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxcl import schema
from jaxcl.checks import require
from jaxcl.heads import cross_entropy, head_layers, require_heads, scenario_mask
from jaxcl.nn import capture, inspection
from jaxcl.nn.fitting import require_logits, shape_of, shapes
from jaxcl.nn.precision import compute_in
from jaxcl.ops.trees import leaf_names, starts_with
from jaxcl.types import AS_IT_IS, ApplyFn, Codec, PyTree, Setup

Heads = Sequence[Sequence[str | int]]
Mask = tuple[jax.Array, str]
"""The outputs of each task, bool[T, K], and which row applies; see `scenario_mask`."""


def shared_outputs(
    scenario: str,
    num_tasks: int,
    num_outputs: int,
    classes_per_task: Sequence[int] | None = None,
) -> Mask:
    """The `Mask` of a scenario in which T tasks share K outputs.

    Args:
      scenario: one of `jaxcl.heads.SCENARIOS`.
      num_tasks: T.
      num_outputs: K.
      classes_per_task: of each task, in the order of the outputs; None: evenly many.

    Raises:
      ValueError: an unknown scenario; K below 2; K that T tasks cannot share evenly;
        classes that are not one number of at least 1 per task, with the sum K.
    """
    schema.require("num_tasks", num_tasks, schema.Count)
    # The softmax of one output is 1 whatever the weights: its loss has no gradient.
    schema.require("num_outputs", num_outputs, Annotated[int, schema.Range(2)])
    if scenario not in ("task", "class"):  # domain, or refused there
        require(
            classes_per_task is None,
            f"classes_per_task={classes_per_task} needs scenario task or class, got "
            f"{scenario!r}: all tasks share all outputs",
        )
        return scenario_mask(scenario, num_tasks, [num_outputs] * num_tasks)
    if classes_per_task is None:
        require(
            num_outputs % num_tasks == 0,
            f"{num_outputs} outputs cannot be split evenly over {num_tasks} tasks: "
            "give classes_per_task",
        )
        classes_per_task = [num_outputs // num_tasks] * num_tasks
    each = getattr(classes_per_task, "tolist", lambda: classes_per_task)()
    schema.require("classes_per_task", each, Sequence[int])
    each = list(map(int, each))
    require(
        len(each) == num_tasks and min(each) >= 1 and sum(each) == num_outputs,
        f"classes_per_task must be {num_tasks} numbers of at least 1 with the sum "
        f"{num_outputs}, got {each}",
    )
    return scenario_mask(scenario, num_tasks, each)


def adapted(
    apply_fn: ApplyFn,
    parts: tuple[PyTree, PyTree],
    example: Any,
    mask: Mask,
    heads: Heads,
    of: Callable[..., Any],
    *,
    axis: int = -1,
    codec: Codec = AS_IT_IS,
    dtype: str = "float32",
    wiring: Mapping[str, tuple[str, ...]] | None = None,
    mixes_examples: bool = False,
) -> Setup:
    """The `Setup` of an adapter's apply function.

    Args:
      apply_fn: the adapter's.
      parts: parameters and state, or their shapes.
      example: an input batch, or its shape.
      mask: the logits of each task.
      heads: paths of the classifier.
      of: the model's class, for messages.
      axis: which axis of a kernel runs over its outputs.
      codec: how memories keep inputs.
      dtype: the dtype that the model computes in; see `jaxcl.nn.precision.compute_in`.
      wiring: layer -> layers that feed it; None: found by tracing.
      mixes_examples: whether an example's logits depend on its batch.

    Raises:
      ValueError: as `jaxcl.setup_for`.
    """
    net, state = shapes(parts)
    example = shape_of(example)
    task = jax.ShapeDtypeStruct(example.shape[:1], jnp.int32)

    def logits(net, state, x, task):
        return apply_fn(net, state, x, task, jax.random.key(0), False).logits

    require_logits(logits, (net, state, example, task), of, mask[0].shape[1], example)
    name = getattr(of, "__name__", repr(of))
    found = inspection.inspect(apply_fn, net, state, example, wiring, name)
    layers = found.layers
    if dtype != "float32":
        layers = tuple(layer._replace(dtype=dtype) for layer in layers)
    return assembled(
        compute_in(dtype, apply_fn),
        example,
        mask,
        heads,
        net,
        layers=layers,
        norms=found.norms,
        model_state=state,
        axis=axis,
        codec=codec,
        mixes_examples=mixes_examples,
    )


def linen(
    model: capture.LinenModel,
    example: Any,
    mask: Mask,
    heads: Heads,
    *,
    codec: Codec = AS_IT_IS,
    dtype: str = "float32",
) -> Setup:
    """The `Setup` of a Flax Linen model; arguments as `adapted`'s.

    Raises:
      ValueError: as `jaxcl.setup_for_linen`.
    """
    num_tasks, declared = mask[0].shape[0], getattr(model, "num_tasks", None)
    if declared is not None and declared < num_tasks:
        raise ValueError(
            f"the model has parameters for num_tasks={declared} tasks, the stream has "
            f"{num_tasks}"
        )
    init = capture.init_fn(model, shape_of(example))
    return adapted(
        capture.apply_fn(model),
        jax.eval_shape(init, jax.random.key(0)),
        example,
        mask,
        heads,
        type(model),
        codec=codec,
        dtype=dtype,
        wiring=getattr(model, "wiring", None),
        mixes_examples=getattr(model, "mixes_examples", False),
    )


def assembled(
    apply_fn: ApplyFn,
    example: Any,
    mask: Mask,
    heads: Heads,
    net: PyTree | None,
    **fields: Any,
) -> Setup:
    """Builds a `Setup` from its fields; checks the heads against ``net``.

    Raises:
      ValueError: heads of another form, that match no parameter, or name no classifier.
    """
    schema.require("heads", heads, Sequence[Sequence[str | int]])
    if net is not None:
        require_heads(heads, net)
    logit_mask, mask_by = mask
    setup = Setup(
        apply_fn=apply_fn,
        task_loss=cross_entropy(logit_mask, mask_by),
        heads=tuple(tuple(map(str, head)) for head in heads),
        logit_mask=logit_mask,
        mask_by=mask_by,
        num_tasks=logit_mask.shape[0],
        example=shape_of(example),
        **({"mixes_examples": False} | fields),
    )
    _require_classifier(setup, net)
    return setup


def _require_classifier(setup: Setup, net: PyTree | None) -> None:
    """Refuses heads that name a hidden layer, as far as the layers are known.

    Raises:
      ValueError: another layer reads the head; or no parameter of the head has the K
        outputs, and a layer elsewhere has.
    """
    own = head_layers(setup)
    for layer in setup.layers:
        read = {head.name for head in own}.intersection(layer.feeds_on or ())
        require(
            layer in own or not read,
            f"heads must name the classifier: layer {layer.name!r} reads "
            f"{', '.join(sorted(read))}",
        )
    outputs = setup.logit_mask.shape[1]
    elsewhere = [s.name for s in setup.layers if s.n_out == outputs and s not in own]
    has = any(
        starts_with(leaf_names(path), setup.heads) and outputs in leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(net)
    )
    require(
        has or net is None or not (setup.heads and elsewhere),
        f"heads must name the classifier: {setup.heads} has no parameter with the "
        f"{outputs} outputs, {', '.join(elsewhere)} has",
    )
