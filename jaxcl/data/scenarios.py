"""Cuts data sets into streams of tasks."""

from __future__ import annotations

import warnings
from typing import Annotated

import numpy as np

from jaxcl import schema
from jaxcl.checks import require, require_finite, require_range, require_room
from jaxcl.data.draw import seed_view, stack_views, starts
from jaxcl.data.sources import Source
from jaxcl.data.stream import Base, Stream
from jaxcl.heads import SCENARIOS, scenario_mask
from jaxcl.schema import Count, Length, OneOf, Part, Positive, Share, checked

KINDS = ("split", "permuted")
CLASS_ORDERS = ("fixed", "seed")


@checked
def make_stream(
    source: Source,
    seeds: tuple[int, ...],
    *,
    kind: Annotated[str, OneOf(KINDS)],
    scenario: Annotated[str, OneOf(SCENARIOS)],
    num_tasks: Count,
    classes_per_task: Count | None = None,
    class_order: Annotated[str, OneOf(CLASS_ORDERS)] = "fixed",
    valid_fraction: Part = 0.0,
    stratified: bool = False,
    first_permuted: bool = True,
    train_per_task: Count | None = None,
    test_per_task: Count | None = None,
    mean: Annotated[tuple[Share, ...], Length(1)] | None = None,
    std: Annotated[tuple[Positive, ...], Length(1)] | None = None,
) -> Stream:
    """Cuts a data set into tasks.

    Everything random (class order, permutations, the validation split) is drawn here,
    once, from each seed alone: seed k's stream is the same whichever seeds run beside.

    Args:
      source: the data set.
      seeds: one view each.
      kind: "split" (each task some of the classes) or "permuted" (each task all
        classes, its pixels in an order of its own).
      scenario: "task", "domain" or "class"; see `jaxcl.heads.scenario_mask`.
      num_tasks: T.
      classes_per_task: split only; the same for every task, classes beyond are left
        out. By default all classes are shared as evenly as can be, the first tasks
        having one more: ten classes in three tasks are 4, 3 and 3.
      class_order: split only; "fixed" (0, 1, 2, …) or "seed" (drawn per seed).
      valid_fraction: share of each task's training data held out, drawn per seed.
      stratified: True holds out that share of each class of a task, to within one
        example; False draws from all of a task's examples alike.
      first_permuted: permuted only; False leaves task 1 as it is.
      train_per_task: at most so many training examples (before the validation split).
      test_per_task: at most so many test examples.
      mean: per channel, on the [0, 1] scale; by default the source's own.
      std: likewise.

    Returns:
      A `Stream`.

    Raises:
      ValueError: an unknown name or a number the data set cannot give, quoted;
        domain-incremental tasks that would not have equally many classes.

    Source: permuted — Goodfellow et al., An empirical investigation of catastrophic
    forgetting, 2013, https://arxiv.org/abs/1312.6211. Split — Zenke et al., 2017,
    https://arxiv.org/abs/1703.04200. Scenarios — van de Ven and Tolias, 2019,
    https://arxiv.org/abs/1904.07734.
    """
    schema.require("seeds", seeds, schema.Seeds)
    require(
        valid_fraction > 0 or not stratified,
        "stratified=True needs a valid_fraction above 0",
    )
    _require_source(source)
    for name, values in (("mean", mean), ("std", std)):
        channels = source.train_x.shape[-1]
        require(
            values is None or len(values) == channels,
            f"{name} must have a value for each of {channels} channels, got {values}",
        )
    sizes = _class_counts(
        source, kind, num_tasks, classes_per_task, class_order, first_permuted
    )
    if kind == "permuted":  # of each seed and task all rows, and an order of pixels
        each = source.train_x[0].size + len(source.train_x) + len(source.test_x)
        require_room(f"{num_tasks} tasks", 4 * len(seeds) * num_tasks * each)
    if scenario == "task" and max(sizes) == 1:
        warnings.warn(
            "one class per task and a head per task leave nothing to tell apart: every "
            "accuracy will be 100 %",
            stacklevel=2,
        )
    mask, mask_by = scenario_mask(scenario, num_tasks, sizes)

    shape = source.train_x.shape[1:]
    views = [
        seed_view(
            source,
            np.random.default_rng([seed, 0x6A61]),
            kind=kind,
            scenario=scenario,
            sizes=sizes,
            shuffle_classes=class_order == "seed",
            valid_fraction=valid_fraction,
            stratified=stratified,
            first_permuted=first_permuted,
            limits=(train_per_task, test_per_task),
        )
        for seed in seeds
    ]
    return Stream(
        name=f"{kind} {source.name}",
        scenario=scenario,
        base=Base(
            source.train_x.reshape(len(source.train_x), -1),
            source.train_y,
            source.test_x.reshape(len(source.test_x), -1),
            source.test_y,
        ),
        per_seed=stack_views(views),
        task_names=_task_names(source, kind, class_order, sizes),
        logit_mask=mask,
        mask_by=mask_by,
        input_shape=shape,
        scale=float(source.max_value),
        mean=tuple(source.mean if mean is None else mean),
        std=tuple(source.std if std is None else std),
    )


def _require_source(source: Source) -> None:
    """Refuses images that are NaN, and labels that are not one class for each."""
    classes = len(source.class_names)
    for part in ("train", "test"):
        x, y = getattr(source, f"{part}_x"), getattr(source, f"{part}_y")
        require(
            len(x) == len(y),
            f"{source.name}: as many {part} labels as images are needed, got {len(y)} "
            f"and {len(x)}",
        )
        require_range(f"{source.name}: {part} labels", y, classes)
        if not np.issubdtype(x.dtype, np.integer):
            require_finite(x, f"{source.name}: {part} images")


def _class_counts(
    source, kind, num_tasks, classes_per_task, class_order, first_permuted
) -> list[int]:
    """How many classes each task has."""
    total = len(source.class_names)
    if kind == "permuted":
        require(
            classes_per_task in (None, total) and class_order == "fixed",
            "a permuted stream gives every task all classes in their order; "
            f"classes_per_task {classes_per_task}, class_order {class_order!r} are "
            "for split streams",
        )
        return [total] * num_tasks
    sizes = (
        _shared(total, num_tasks)
        if classes_per_task is None
        else [classes_per_task] * num_tasks
    )
    require(
        min(sizes) >= 1 and sum(sizes) <= total,
        f"{source.name} has {total} classes, not enough for {num_tasks} tasks of "
        f"{max(*sizes, 1)}",
    )
    require(first_permuted, "first_permuted=False is for permuted streams")
    return sizes


def _task_names(source, kind, class_order, sizes) -> tuple[str, ...]:
    if kind == "permuted" or class_order != "fixed":
        return tuple(f"task {t + 1}" for t in range(len(sizes)))
    classes = (
        source.class_names[first : first + size]
        for first, size in zip(starts(sizes), sizes, strict=True)
    )
    return tuple(
        " ".join(own) if len(own) <= 2 else f"{own[0]} … {own[-1]}" for own in classes
    )


def _shared(total: int, num_tasks: int) -> list[int]:
    """Classes per task, as even as can be: the first tasks have the ones left over."""
    share, left = divmod(total, num_tasks)
    return [share + (t < left) for t in range(num_tasks)]
