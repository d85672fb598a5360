"""Streams: one base data set seen as a sequence of tasks, per seed, without a copy.

A task is a run of positions in an index array plus two small maps, pixel permutation
and labels. Indices lie one task after another with their offsets (no padding between
tasks of unequal size), so that "all data up to task t" is a prefix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.data.sources import Source
from jaxcl.heads import SCENARIOS, scenario_mask
from jaxcl.types import Batch, Codec, TaskData

KINDS = ("split", "permuted")


class Base(NamedTuple):
    """What all seeds and tasks share; uint8 images stay uint8 on the device."""

    train_x: jax.Array | np.ndarray  # uint8 [N, D]: flat rows gather ten times faster
    train_y: jax.Array | np.ndarray  # int32[N]
    test_x: jax.Array | np.ndarray
    test_y: jax.Array | np.ndarray


class Part(NamedTuple):
    """One split (train, validation or test) of every task of one seed."""

    index: jax.Array | np.ndarray  # int32[M] into the base arrays, task after task
    offset: jax.Array | np.ndarray  # int32[T + 1]


class Lane(NamedTuple):
    """One seed's view of the data; with a leading [S] for all seeds."""

    train: Part
    valid: Part
    test: Part
    label: jax.Array | np.ndarray  # int32[T, classes] target, or -1 if not in the task
    pixel: jax.Array | np.ndarray  # int32[T, D] permutation; int32[T, 0] without one


class Stream(NamedTuple):
    """A sequence of tasks for every seed."""

    name: str
    scenario: str
    base: Base
    lanes: Lane  # numpy, leading [S]
    task_names: tuple[str, ...]
    logit_mask: jax.Array  # bool[T, K]
    mask_by: str
    input_shape: tuple[int, ...]  # of one example
    scale: float  # pixel value that means 1.0
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    @property
    def num_outputs(self) -> int:
        return self.logit_mask.shape[1]

    @property
    def codec(self) -> Codec:
        """Network inputs to the base arrays' uint8 and back, without loss.

        decode(p) = (p − mean) · 1/std on the base arrays' scale is how `view` makes
        inputs; encode undoes it, and its rounding is off by far less than half a step.
        """
        mean = jnp.asarray(self.mean, jnp.float32) * self.scale
        factor = 1 / (jnp.asarray(self.std, jnp.float32) * self.scale)

        def encode(x: jax.Array) -> jax.Array:
            return jnp.clip(jnp.round(x / factor + mean), 0, 255).astype(jnp.uint8)

        def decode(pixels: jax.Array) -> jax.Array:
            return (pixels.astype(jnp.float32) - mean) * factor

        return Codec(encode, decode)

    def between(self, first: int, stop: int) -> Stream:
        """The tasks from number `first` on, up to but without `stop`, counted from 0.

        Raises:
          ValueError: no such tasks.
        """
        if not 0 <= first < stop <= self.num_tasks:
            raise ValueError(
                f"tasks {first} to {stop} cannot be had from a stream of "
                f"{self.num_tasks}: 0 <= first < stop <= {self.num_tasks} must hold"
            )

        def cut(part: Part) -> Part:
            offset = np.asarray(part.offset)[:, first : stop + 1]
            longest = int((offset[:, -1] - offset[:, 0]).max())
            rows = [
                np.pad(row[o[0] : o[-1]], (0, longest - int(o[-1] - o[0])))
                for row, o in zip(np.asarray(part.index), offset, strict=True)
            ]
            return Part(np.stack(rows), offset - offset[:, :1])

        mask = self.logit_mask[first:stop]
        if self.mask_by == "task" and first:  # classes of tasks left out stay out
            mask = mask & ~self.logit_mask[first - 1]
        lanes = self.lanes
        return self._replace(
            lanes=Lane(
                train=cut(lanes.train),
                valid=cut(lanes.valid),
                test=cut(lanes.test),
                label=lanes.label[:, first:stop],
                pixel=lanes.pixel[:, first:stop],
            ),
            task_names=self.task_names[first:stop],
            logit_mask=mask,
        )

    def capacity(self, part: str, joint: bool = False) -> int:
        """The most examples a task has in any seed; joint: all tasks together."""
        offset = np.asarray(getattr(self.lanes, part).offset)
        return int(offset[:, -1].max() if joint else np.diff(offset, axis=1).max())

    def view(
        self, base: Base, lane: Lane, part: str, task: jax.Array, joint: bool = False
    ) -> TaskData:
        """One task of one seed (joint: with all before it), readable inside jit.

        Args:
          base: the base arrays, on the device.
          lane: one seed's `Lane`, without the leading [S].
          part: "train", "valid" or "test".
          task: int32[], may be traced.
          joint: also the tasks before.

        Returns:
          A `TaskData` whose inputs are normalised, permuted float32.
        """
        index, offset = getattr(lane, part)
        start = jnp.zeros((), jnp.int32) if joint else offset[task]
        images = base.test_x if part == "test" else base.train_x
        labels = base.test_y if part == "test" else base.train_y
        decode = self.codec.decode

        def take(position: jax.Array) -> Batch:
            at = start + position
            row = index[at]
            if joint:
                owner = jnp.searchsorted(offset[1:], at, side="right")
                owner = owner.astype(jnp.int32)
            else:
                owner = jnp.full(position.shape, task, jnp.int32)
            x = images[row]
            if lane.pixel.shape[-1]:
                if joint:
                    x = jnp.take_along_axis(x, lane.pixel[owner], axis=1)
                else:  # one order for all: moving whole columns is cheaper
                    x = x.T[lane.pixel[task]].T
            x = x.reshape(-1, *self.input_shape)
            return Batch(
                x=decode(x),
                y=lane.label[owner, labels[row]],
                task=owner,
                weight=jnp.ones(position.shape, jnp.float32),
                index=position.astype(jnp.int32),
            )

        return TaskData(take, offset[task + 1] - start, self.capacity(part, joint))


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
      seeds: one lane each.
      kind: "split" (each task some of the classes) or "permuted" (each task all
        classes, its pixels in an order of its own).
      scenario: "task", "domain" or "class"; see `jaxcl.heads.scenario_mask`.
      num_tasks: T.
      classes_per_task: split only; by default all classes shared evenly.
      class_order: split only; "fixed" (0, 1, 2, …) or "seed" (drawn per seed).
      valid_fraction: share of each task's training data held out, drawn per seed.
      first_permuted: permuted only; False leaves task 1 as it is.
      train_per_task: at most so many training examples (before the validation split).
      test_per_task: at most so many test examples.
      mean: per channel, on the [0, 1] scale; by default the source's own.
      std: likewise.

    Returns:
      A `Stream`.

    Raises:
      ValueError: an unknown name or a number the data set cannot give, quoted.

    Source: permuted — Goodfellow et al., An empirical investigation of catastrophic
    forgetting, 2013, https://arxiv.org/abs/1312.6211. Split — Zenke et al., 2017,
    https://arxiv.org/abs/1703.04200. Scenarios — van de Ven and Tolias, 2019,
    https://arxiv.org/abs/1904.07734.
    """
    total = len(source.class_names)
    _check(kind in KINDS, f"stream must be one of {', '.join(KINDS)}, got {kind!r}")
    _check(
        scenario in SCENARIOS,
        f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}",
    )
    _check(
        class_order in ("fixed", "seed"),
        f"class_order must be 'fixed' or 'seed', got {class_order!r}",
    )
    _check(num_tasks >= 1, f"num_tasks must be at least 1, got {num_tasks}")
    _check(len(seeds) >= 1, "at least one seed is needed, got none")
    _check(
        0 <= valid_fraction < 1,
        f"valid_fraction must lie in [0, 1), got {valid_fraction}",
    )
    for name, value in (("train", train_per_task), ("test", test_per_task)):
        _check(
            value is None or value >= 1,
            f"{name}_per_task must be at least 1, got {value}",
        )
    if kind == "permuted":
        _check(
            classes_per_task in (None, total) and class_order == "fixed",
            "a permuted stream gives every task all classes in their order; "
            f"classes_per_task {classes_per_task}, class_order {class_order!r} are "
            "for split streams",
        )
        per_task = total
    else:
        per_task = total // num_tasks if classes_per_task is None else classes_per_task
        _check(
            per_task >= 1 and per_task * num_tasks <= total,
            f"{source.name} has {total} classes, not enough for {num_tasks} tasks of "
            f"{max(per_task, 1)}",
        )
        _check(first_permuted, "first_permuted=False is for permuted streams")
    mask, mask_by = scenario_mask(scenario, num_tasks, [per_task] * num_tasks)

    shape = source.train_x.shape[1:]
    lanes = [
        _lane(
            source,
            np.random.default_rng([seed, 0x6A61]),
            kind=kind,
            scenario=scenario,
            num_tasks=num_tasks,
            per_task=per_task,
            shuffle_classes=class_order == "seed",
            valid_fraction=valid_fraction,
            first_permuted=first_permuted,
            limits=(train_per_task, test_per_task),
        )
        for seed in seeds
    ]
    if kind == "split" and class_order == "fixed":
        names = tuple(
            " ".join(source.class_names[t * per_task : (t + 1) * per_task])
            if per_task <= 2
            else f"{source.class_names[t * per_task]} … "
            f"{source.class_names[(t + 1) * per_task - 1]}"
            for t in range(num_tasks)
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
        lanes=_stack(lanes),
        task_names=names,
        logit_mask=mask,
        mask_by=mask_by,
        input_shape=shape,
        scale=float(source.max_value),
        mean=tuple(source.mean if mean is None else mean),
        std=tuple(source.std if std is None else std),
    )


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _lane(
    source,
    rng,
    *,
    kind,
    scenario,
    num_tasks,
    per_task,
    shuffle_classes,
    valid_fraction,
    first_permuted,
    limits,
) -> Lane:
    total = len(source.class_names)
    order = rng.permutation(total) if shuffle_classes else np.arange(total)
    label = np.full((num_tasks, total), -1, np.int32)
    train, valid, test = [], [], []
    for t in range(num_tasks):
        first = 0 if kind == "permuted" else t * per_task
        classes = order[first : first + per_task]
        shift = 0 if scenario == "domain" else t * per_task
        label[t, classes] = np.arange(per_task) + shift
        rows = np.flatnonzero(np.isin(source.train_y, classes))
        rows = rng.permutation(rows)[: limits[0]]
        held = round(valid_fraction * len(rows))
        _check(
            held < len(rows) and (held > 0 or valid_fraction == 0),
            f"task {t + 1} has {len(rows)} training examples, too few to hold out "
            f"{valid_fraction:g} of them",
        )
        valid.append(np.sort(rows[:held]))
        train.append(np.sort(rows[held:]))
        rows = np.flatnonzero(np.isin(source.test_y, classes))
        if limits[1] is not None:
            rows = np.sort(rng.permutation(rows)[: limits[1]])
        _check(len(rows) > 0, f"task {t + 1} has no test examples")
        test.append(rows)
    pixels = int(np.prod(source.train_x.shape[1:])) if kind == "permuted" else 0
    pixel = np.zeros((num_tasks, pixels), np.int32)
    if pixels:
        for t in range(num_tasks):
            keep = t == 0 and not first_permuted
            pixel[t] = np.arange(pixels) if keep else rng.permutation(pixels)
    return Lane(_part(train), _part(valid), _part(test), label, pixel)


def _part(tasks: list[np.ndarray]) -> Part:
    offset = np.concatenate([[0], np.cumsum([len(t) for t in tasks])])
    return Part(np.concatenate(tasks).astype(np.int32), offset.astype(np.int32))


def _stack(lanes: list[Lane]) -> Lane:
    """Adds the leading [S]; the index arrays of seeds may differ a little in length."""

    def stack(*leaves):
        longest = max(len(leaf) for leaf in leaves)
        if leaves[0].ndim == 1:
            leaves = [np.pad(leaf, (0, longest - len(leaf))) for leaf in leaves]
        return np.stack(leaves)

    return jax.tree.map(stack, *lanes)
