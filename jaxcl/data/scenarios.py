"""Cuts data sets into streams of tasks."""

from __future__ import annotations

import numpy as np

from jaxcl.checks import require
from jaxcl.data.draw import seed_view, stack_views, starts
from jaxcl.data.sources import Source
from jaxcl.data.stream import Base, Stream
from jaxcl.heads import SCENARIOS, scenario_mask

KINDS = ("split", "permuted")
CLASS_ORDERS = ("fixed", "seed")


def make_stream(
    source: Source,
    seeds: tuple[int, ...],
    *,
    kind: str,
    scenario: str,
    num_tasks: int,
    classes_per_task: int | None = None,
    class_order: str = "fixed",
    valid_fraction: float = 0.0,
    stratified: bool = False,
    first_permuted: bool = True,
    train_per_task: int | None = None,
    test_per_task: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
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
    choices = {"stream": kind, "scenario": scenario, "class_order": class_order}
    limits = (train_per_task, test_per_task)
    _require(seeds, num_tasks, choices, valid_fraction, stratified, limits)
    sizes = _class_counts(
        source, kind, num_tasks, classes_per_task, class_order, first_permuted
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
            limits=limits,
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
        notes=source.notes,
    )


def _require(seeds, num_tasks, choices, valid_fraction, stratified, limits) -> None:
    allowed = {"stream": KINDS, "scenario": SCENARIOS, "class_order": CLASS_ORDERS}
    for name, value in choices.items():
        require(
            value in allowed[name],
            f"{name} must be one of {', '.join(allowed[name])}, got {value!r}",
        )
    require(num_tasks >= 1, f"num_tasks must be at least 1, got {num_tasks}")
    require(len(seeds) >= 1, "at least one seed is needed, got none")
    require(
        0 <= valid_fraction < 1,
        f"valid_fraction must lie in [0, 1), got {valid_fraction}",
    )
    require(
        valid_fraction > 0 or not stratified,
        "stratified=True needs a valid_fraction above 0",
    )
    for name, value in zip(("train", "test"), limits, strict=True):
        require(
            value is None or value >= 1,
            f"{name}_per_task must be at least 1, got {value}",
        )


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
