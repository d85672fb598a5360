"""Cuts data sets into streams of tasks."""

from __future__ import annotations

import jax
import numpy as np

from jaxcl.checks import require
from jaxcl.data.sources import Source
from jaxcl.data.stream import Base, Part, SeedView, Stream
from jaxcl.heads import SCENARIOS, scenario_mask

KINDS = ("split", "permuted")


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
    total = len(source.class_names)
    require(kind in KINDS, f"stream must be one of {', '.join(KINDS)}, got {kind!r}")
    require(
        scenario in SCENARIOS,
        f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}",
    )
    require(
        class_order in ("fixed", "seed"),
        f"class_order must be 'fixed' or 'seed', got {class_order!r}",
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
    for name, value in (("train", train_per_task), ("test", test_per_task)):
        require(
            value is None or value >= 1,
            f"{name}_per_task must be at least 1, got {value}",
        )
    if kind == "permuted":
        require(
            classes_per_task in (None, total) and class_order == "fixed",
            "a permuted stream gives every task all classes in their order; "
            f"classes_per_task {classes_per_task}, class_order {class_order!r} are "
            "for split streams",
        )
        sizes = [total] * num_tasks
    else:
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
    mask, mask_by = scenario_mask(scenario, num_tasks, sizes)

    shape = source.train_x.shape[1:]
    views = [
        _seed_view(
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
    if kind == "split" and class_order == "fixed":
        names = tuple(
            " ".join(own) if len(own) <= 2 else f"{own[0]} … {own[-1]}"
            for own in (
                source.class_names[first : first + size]
                for first, size in zip(_starts(sizes), sizes, strict=True)
            )
        )
    else:
        names = tuple(f"task {t + 1}" for t in range(num_tasks))

    return Stream(
        name=f"{kind} {source.name}",
        scenario=scenario,
        base=Base(
            source.train_x.reshape(len(source.train_x), -1),
            source.train_y,
            source.test_x.reshape(len(source.test_x), -1),
            source.test_y,
        ),
        per_seed=_stack(views),
        task_names=names,
        logit_mask=mask,
        mask_by=mask_by,
        input_shape=shape,
        scale=float(source.max_value),
        mean=tuple(source.mean if mean is None else mean),
        std=tuple(source.std if std is None else std),
    )


def _seed_view(
    source,
    rng,
    *,
    kind,
    scenario,
    sizes,
    shuffle_classes,
    valid_fraction,
    stratified,
    first_permuted,
    limits,
) -> SeedView:
    total = len(source.class_names)
    order = rng.permutation(total) if shuffle_classes else np.arange(total)
    num_tasks = len(sizes)
    label = np.full((num_tasks, total), -1, np.int32)
    train, valid, test = [], [], []
    for t, (start, size) in enumerate(zip(_starts(sizes), sizes, strict=True)):
        first = 0 if kind == "permuted" else start
        classes = order[first : first + size]
        shift = 0 if scenario == "domain" else start
        label[t, classes] = np.arange(size) + shift
        rows = np.flatnonzero(np.isin(source.train_y, classes))
        rows = rng.permutation(rows)[: limits[0]]
        held = round(valid_fraction * len(rows))
        require(
            held < len(rows) and (held > 0 or valid_fraction == 0),
            f"task {t + 1} has {len(rows)} training examples, too few to hold out "
            f"{valid_fraction:g} of them",
        )
        if stratified:
            rows = _by_class(rows, source.train_y[rows], held)
        valid.append(np.sort(rows[:held]))
        train.append(np.sort(rows[held:]))
        rows = np.flatnonzero(np.isin(source.test_y, classes))
        if limits[1] is not None:
            rows = np.sort(rng.permutation(rows)[: limits[1]])
        require(len(rows) > 0, f"task {t + 1} has no test examples")
        test.append(rows)
    pixels = int(np.prod(source.train_x.shape[1:])) if kind == "permuted" else 0
    pixel = np.zeros((num_tasks, pixels), np.int32)
    if pixels:
        for t in range(num_tasks):
            keep = t == 0 and not first_permuted
            pixel[t] = np.arange(pixels) if keep else rng.permutation(pixels)
    return SeedView(_part(train), _part(valid), _part(test), label, pixel)


def _shared(total: int, num_tasks: int) -> list[int]:
    """Classes per task, as even as can be: the first tasks have the ones left over."""
    share, left = divmod(total, num_tasks)
    return [share + (t < left) for t in range(num_tasks)]


def _starts(sizes: list[int]) -> list[int]:
    """The first class of each task."""
    return [sum(sizes[:t]) for t in range(len(sizes))]


def _by_class(rows: np.ndarray, label: np.ndarray, held: int) -> np.ndarray:
    """Moves to the front `held` rows with each class's share of them.

    A class of n of the N rows gives n · held/N, rounded down; what is then missing
    comes from the classes that rounding cost most, one row each.
    """
    classes, which, count = np.unique(label, return_inverse=True, return_counts=True)
    exact = count * held / len(rows)
    quota = np.floor(exact).astype(int)
    missing = held - quota.sum()
    quota[np.argsort(quota - exact, kind="stable")[:missing]] += 1
    place = np.empty(len(rows), int)  # of a row among those of its class
    for c in range(len(classes)):
        place[which == c] = np.arange(count[c])
    return rows[np.argsort(place >= quota[which], kind="stable")]


def _part(tasks: list[np.ndarray]) -> Part:
    offset = np.concatenate([[0], np.cumsum([len(t) for t in tasks])])
    return Part(np.concatenate(tasks).astype(np.int32), offset.astype(np.int32))


def _stack(views: list[SeedView]) -> SeedView:
    """Adds the leading [S]; the index arrays of seeds may differ a little in length."""

    def stack(*leaves):
        longest = max(len(leaf) for leaf in leaves)
        if leaves[0].ndim == 1:
            leaves = [np.pad(leaf, (0, longest - len(leaf))) for leaf in leaves]
        return np.stack(leaves)

    return jax.tree.map(stack, *views)
