"""Cuts data sets into streams of tasks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from jaxcl import schema
from jaxcl.checks import require, require_room
from jaxcl.data.augment import make_augment
from jaxcl.data.classes import cut_classes
from jaxcl.data.consistent import require_source
from jaxcl.data.draw import seed_view, stack_views, starts
from jaxcl.data.noise import noise_of
from jaxcl.data.own_tasks import labels_of, require_alone
from jaxcl.data.rotation import Angles, require_angles, require_no_angles
from jaxcl.data.source import Source
from jaxcl.data.stream import Base, Stream
from jaxcl.heads import SCENARIOS, scenario_mask
from jaxcl.schema import Count, Natural, NonEmpty, OneOf, Part, Positive, Share, checked
from jaxcl.types import Augmentation

KINDS = ("split", "permuted", "rotated")


@checked
def make_stream(
    source: Source,
    seeds: tuple[int, ...],
    *,
    kind: Annotated[str, OneOf(KINDS)],
    scenario: Annotated[str, OneOf(SCENARIOS)],
    num_tasks: Count,
    classes_per_task: Count | None = None,
    class_order: str | Sequence[int | str] = "fixed",
    task_classes: Sequence[Sequence[int | str]] | None = None,
    valid_fraction: Part = 0.0,
    stratified: bool = False,
    first_permuted: bool = True,
    angles: Sequence[float] | None = None,
    angle_step: float = 0.0,
    angle_draw: tuple[float, float] | None = None,
    first_angle: float | None = None,
    train_per_task: Count | None = None,
    test_per_task: Count | None = None,
    label_noise: Part = 0.0,
    confusion: Sequence[Sequence[int | str]] | None = None,
    mean: Annotated[tuple[Share, ...], NonEmpty()] | None = None,
    std: Annotated[tuple[Positive, ...], NonEmpty()] | None = None,
    flip: bool = False,
    crop_padding: Natural = 0,
    augment: str | Augmentation = "",
) -> Stream:
    """Cuts a data set into tasks.

    Everything random (class order, permutations, angles, the validation split) is drawn
    here, once, from each seed alone: the stream of seed k does not depend on the other
    seeds of the run.

    Args:
      source: the data set; one of `from_tasks` says what the tasks are.
      seeds: one view each.
      kind: "split" (each task has some of the classes), "permuted" (each task has all
        classes and its own order of pixels) or "rotated" (each task has all classes and
        its own angle of rotation).
      scenario: "task", "domain" or "class"; see `jaxcl.heads.scenario_mask`.
      num_tasks: T.
      classes_per_task: split only; the same for every task, and further classes are
        left out. By default all classes are shared as evenly as possible, and the first
        tasks have one more: ten classes in three tasks are 4, 3 and 3.
      class_order: split only; "fixed" (0, 1, 2, …), "seed" (drawn per seed), or the
        classes as numbers or names, in a sequence or in text separated by commas; all
        other classes are left out.
      task_classes: split only; each task's classes as numbers or names. Tasks may
        differ in size; no class may occur twice.
      valid_fraction: share of each task's training data held out, drawn per seed.
      stratified: True holds out that share of each class of a task, to within one
        example; False draws from all examples of a task together.
      first_permuted: permuted only; False leaves task 1 as it is.
      angles: rotated only; an angle in degrees per task, counter-clockwise.
      angle_step: rotated only; degrees from one task to the next.
      angle_draw: rotated only; (low, high) in degrees of an angle that is drawn per
        task and seed and added.
      first_angle: rotated only; the first task's, instead of that by step and draw.
      train_per_task: at most so many training examples (before the validation split).
      test_per_task: at most so many test examples.
      label_noise: share of each class's training labels (also of held-out examples)
        that are changed to another class of the task, drawn per seed; test labels stay.
      confusion: pairs (class, wrong class), numbers or names: which classes label_noise
        changes, and to what. By default all, to each other class equally often.
      mean: per channel, on the [0, 1] scale; by default the source's own.
      std: likewise.
      flip: in training, images are mirrored left to right, half of the time.
      crop_padding: in training, so many black pixels are added on each side of an
        image, and a window of its own size is cut out at random.
      augment: in training, after these, a function ``(x [B, ...], key) -> x`` of a
        batch of network inputs, or its import path.

    Returns:
      A `Stream`.

    Raises:
      ValueError: an unknown name, or a number that the data set cannot give (the
        message quotes it); domain-incremental tasks with unequal numbers of classes; a
        single output, unless each task has a head of its own.

    Source: permuted — Goodfellow et al., An empirical investigation of catastrophic
    forgetting, 2013, https://arxiv.org/abs/1312.6211. Rotated — Lopez-Paz and Ranzato,
    Gradient episodic memory, 2017, https://arxiv.org/abs/1706.08840. Split — Zenke et
    al., 2017, https://arxiv.org/abs/1703.04200. Scenarios — van de Ven and Tolias,
    2019, https://arxiv.org/abs/1904.07734.
    """
    schema.require("seeds", seeds, schema.Seeds)
    require(
        valid_fraction > 0 or not stratified,
        "stratified=True needs a valid_fraction above 0",
    )
    require_source(source)
    if kind != "split":  # per seed and task: all rows, and an order of pixels
        each = source.train_x[0].size + len(source.train_x) + len(source.test_x)
        require_room(f"{num_tasks} tasks", 4 * len(seeds) * num_tasks * each)
    turned = Angles(_tuple(angles), angle_step, _tuple(angle_draw), first_angle)
    _require_kind(source, kind, num_tasks, first_permuted, turned)
    cut = {"per_task": classes_per_task, "order": class_order, "given": task_classes}
    if source.tasks is None:
        whole = kind != "split"
        order, sizes = cut_classes(source.class_names, num_tasks, whole=whole, **cut)
    else:
        require_alone(
            source,
            num_tasks,
            kind,
            classes_per_task=classes_per_task,
            class_order=class_order,
            task_classes=task_classes,
        )
        order, sizes = None, labels_of(source, scenario)[1]
    noise = noise_of(source.class_names, label_noise, confusion)
    shape = source.train_x.shape[1:]
    changes = make_augment(flip, crop_padding, augment, kind=kind, shape=shape)
    notes = [*source.notes, *_one_class(scenario, sizes)]
    mask, mask_by = scenario_mask(scenario, num_tasks, sizes)
    require(
        mask.shape[1] > 1 or scenario == "task",
        f"a {scenario}-incremental stream must have at least two outputs, got classes "
        f"per task {sizes}: one output has nothing to learn, and is right untrained",
    )

    views = [
        seed_view(
            source,
            np.random.default_rng([seed, 0x6A61]),
            kind=kind,
            scenario=scenario,
            sizes=sizes,
            order=order,
            valid_fraction=valid_fraction,
            stratified=stratified,
            first_permuted=first_permuted,
            limits=(train_per_task, test_per_task),
            angles=turned,
            noise=noise,
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
        task_names=_task_names(source, kind, order, sizes),
        logit_mask=mask,
        mask_by=mask_by,
        input_shape=shape,
        scale=float(source.max_value),
        mean=_per_channel("mean", source.mean if mean is None else mean, shape),
        std=_per_channel("std", source.std if std is None else std, shape),
        notes=tuple(notes),
        augment=changes,
        class_names=tuple(source.class_names),
    )


def _one_class(scenario: str, sizes: Sequence[int]) -> list[str]:
    """Warns of tasks of one class that have a head of their own."""
    alone = [str(task) for task, size in enumerate(sizes, 1) if size == 1]
    if scenario != "task" or not alone:
        return []
    many = "tasks" if len(alone) > 1 else "task"
    which = "every task" if len(alone) == len(sizes) else f"{many} {', '.join(alone)}"
    told = (
        f"{which}: one class and a head of its own leave nothing to tell apart: the "
        "accuracy is 100 %, untrained too, and is part of all averages"
    )
    warnings.warn(told, stacklevel=4)  # past `checked`: where make_stream is called
    return [told]


def _require_kind(source, kind, num_tasks, first_permuted, angles: Angles) -> None:
    """Refuses settings that belong to another kind."""
    require(
        first_permuted or kind == "permuted",
        "first_permuted=False is for permuted streams",
    )
    if kind != "rotated":
        require_no_angles(angles, kind)
        return
    require_angles(angles, num_tasks)
    shape = list(source.train_x.shape[1:])
    require(len(shape) == 3, f"only images are rotated, {source.name} has {shape}")


def _tuple(values: Sequence[Any] | None) -> Any:
    return None if values is None else tuple(values)


def _per_channel(name: str, values: Sequence[float], shape) -> tuple[float, ...]:
    require(
        len(values) in (1, shape[-1]),
        f"{name} must have a value for each of {shape[-1]} channels, or one for all, "
        f"got {tuple(values)}",
    )
    return tuple(values)


def _task_names(source, kind, order, sizes) -> tuple[str, ...]:
    if source.tasks is not None:
        return source.tasks.names
    if kind != "split" or order is None:
        return tuple(f"task {t + 1}" for t in range(len(sizes)))
    names = [source.class_names[label] for label in order]
    classes = (
        names[first : first + size]
        for first, size in zip(starts(sizes), sizes, strict=True)
    )
    return tuple(
        " ".join(own) if len(own) <= 2 else f"{own[0]} … {own[-1]}" for own in classes
    )
