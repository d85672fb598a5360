"""A stream: one base data set seen as a sequence of tasks, per seed, without a copy.

A task is a run of positions in an index array plus small maps: pixel permutation or
angle, and labels. The indices of all tasks lie one after another, with an offset for
each task (no padding between tasks of unequal size), so that "all data up to task t" is
a prefix.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import schema
from jaxcl.data.augment import Augment, augmented
from jaxcl.data.rotation import rotate
from jaxcl.schema import OneOf
from jaxcl.types import AS_IT_IS, Augmentation, Batch, Codec, TaskData

PARTS = ("train", "valid", "test")


class Base(NamedTuple):
    """Data that all seeds and tasks share; uint8 images stay uint8 on the device."""

    train_x: jax.Array | np.ndarray  # uint8 [N, D]: flat rows gather ten times faster
    train_y: jax.Array | np.ndarray  # int32[N]
    test_x: jax.Array | np.ndarray
    test_y: jax.Array | np.ndarray


class Part(NamedTuple):
    """One split (train, validation or test) of every task of one seed."""

    index: jax.Array | np.ndarray  # int32[M] into the base arrays, task after task
    offset: jax.Array | np.ndarray  # int32[T + 1]


class SeedView(NamedTuple):
    """One seed's view of the data; with a leading [S] for all seeds."""

    train: Part
    valid: Part
    test: Part
    label: jax.Array | np.ndarray  # int32[T, classes] target, or -1 if not in the task
    pixel: jax.Array | np.ndarray  # int32[T, D] permutation; int32[T, 0] without one
    angle: jax.Array | np.ndarray | tuple[()] = ()  # float32[T] degrees; (): none
    noisy: jax.Array | np.ndarray | tuple[()] = ()  # int32[N] training labels; (): none


class Stream(NamedTuple):
    """A sequence of tasks for every seed."""

    name: str
    scenario: str
    base: Base
    per_seed: SeedView  # numpy, leading [S]
    task_names: tuple[str, ...]
    logit_mask: jax.Array  # bool[T, K]
    mask_by: str
    input_shape: tuple[int, ...]  # of one example
    scale: float  # pixel value that means 1.0
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()  # of the data set, for readers of the results
    augment: Augment = Augment()
    class_names: tuple[str, ...] = ()  # of the data set's labels

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    @property
    def num_outputs(self) -> int:
        return self.logit_mask.shape[1]

    @property
    def num_classes(self) -> tuple[int, ...]:
        """Of each task, those that earlier tasks had, too, among them."""
        return tuple((np.asarray(self.per_seed.label) >= 0).sum(-1).max(0).tolist())

    @property
    def codec(self) -> Codec:
        """Converts network inputs to the base arrays' uint8 and back, without loss.

        encode inverts `inputs_of`; the float error is far below half a step, so its
        rounding is exact. If base arrays are not uint8, inputs are kept unchanged.
        """
        if self.base.train_x.dtype != np.uint8:
            return AS_IT_IS
        mean, factor = self._scales()

        def encode(x: jax.Array) -> jax.Array:
            return jnp.clip(jnp.round(x / factor + mean), 0, 255).astype(jnp.uint8)

        return Codec(encode, self.inputs_of(mean, factor))

    @property
    def augmentation(self) -> Augmentation | None:
        """What a training step applies to its inputs: ``(x, key) -> x``, or None."""
        decode = self.inputs_of(*self._scales())
        return augmented(self.augment, decode(jnp.zeros(self.input_shape[-1:])))

    def _scales(self) -> tuple[jax.Array, jax.Array]:
        """Mean and 1/std per channel, on the base arrays' scale."""
        mean = jnp.asarray(self.mean, jnp.float32) * self.scale
        return mean, 1 / (jnp.asarray(self.std, jnp.float32) * self.scale)

    @staticmethod
    def inputs_of(mean: jax.Array, factor: jax.Array):
        """Makes the function from base rows to float32 inputs: (p − mean) · 1/std."""

        def decode(pixels: jax.Array) -> jax.Array:
            return (pixels.astype(jnp.float32) - mean) * factor

        return decode

    def between(self, first: int, stop: int) -> Stream:
        """The tasks `first`, …, `stop` − 1, counted from 0.

        Raises:
          ValueError: there are no such tasks.
        """
        schema.require("tasks", (first, stop), tuple[int, int])
        if not 0 <= first < stop <= self.num_tasks:
            raise ValueError(
                "tasks must be (first, stop) with 0 <= first < stop <= "
                f"{self.num_tasks}, got {(first, stop)}"
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
        if self.mask_by == "task":  # classes of tasks left out stay out
            mask = jnp.asarray(np.logical_or.accumulate(self._own()[first:stop]))
        views = self.per_seed
        return self._replace(
            per_seed=SeedView(
                train=cut(views.train),
                valid=cut(views.valid),
                test=cut(views.test),
                label=views.label[:, first:stop],
                pixel=views.pixel[:, first:stop],
                angle=()
                if isinstance(views.angle, tuple)
                else views.angle[:, first:stop],
                noisy=views.noisy,
            ),
            task_names=self.task_names[first:stop],
            logit_mask=mask,
        )

    def _own(self) -> np.ndarray:
        """bool[T, K], the outputs of each task's classes."""
        label = np.asarray(self.per_seed.label)[0]  # alike in all seeds
        own = np.zeros(self.logit_mask.shape, bool)
        for t, outputs in enumerate(label):
            own[t, outputs[outputs >= 0]] = True
        return own

    @property
    def repeats(self) -> bool:
        """Whether tasks have outputs in common."""
        return bool((self._own().sum(0) > 1).any())

    def capacity(self, part: str, joint: bool = False) -> int:
        """The size of the largest task of any seed; joint: of all tasks together.

        Raises:
          ValueError: no such part.
        """
        schema.require("part", part, Annotated[str, OneOf(PARTS)])
        offset = np.asarray(getattr(self.per_seed, part).offset)
        return int(offset[:, -1].max() if joint else np.diff(offset, axis=1).max())

    def view(
        self,
        base: Base,
        mine: SeedView,
        part: str,
        task: jax.Array,
        joint: bool = False,
    ) -> TaskData:
        """One task of one seed (joint: with all before it), readable inside jit.

        Args:
          base: the base arrays, on the device.
          mine: one seed's `SeedView`, without the leading [S].
          part: "train", "valid" or "test".
          task: int32[], may be traced.
          joint: also the tasks before.

        Returns:
          A `TaskData` whose inputs are permuted or rotated, normalised float32.
        """
        capacity = self.capacity(part, joint)
        index, offset = getattr(mine, part)
        start = jnp.zeros((), jnp.int32) if joint else offset[task]
        images = base.test_x if part == "test" else base.train_x
        labels = base.test_y if part == "test" else base.train_y
        if part != "test" and not isinstance(mine.noisy, tuple):
            labels = mine.noisy

        decode = self.inputs_of(*self._scales())

        def take(position: jax.Array) -> Batch:
            at = start + position
            row = index[at]
            if joint:
                owner = jnp.searchsorted(offset[1:], at, side="right")
                owner = owner.astype(jnp.int32)
            else:
                owner = jnp.full(position.shape, task, jnp.int32)
            x = images[row]
            if mine.pixel.shape[-1]:
                if joint:
                    x = jnp.take_along_axis(x, mine.pixel[owner], axis=1)
                else:  # one order for all: gathering whole columns is cheaper
                    x = x.T[mine.pixel[task]].T
            if not isinstance(mine.angle, tuple):
                x = rotate(x, mine.angle[owner if joint else task], self.input_shape)
            x = x.reshape(-1, *self.input_shape)
            return Batch(
                x=decode(x),
                y=mine.label[owner, labels[row]],
                task=owner,
                weight=jnp.ones(position.shape, jnp.float32),
                index=position.astype(jnp.int32),
            )

        size, changes = offset[task + 1] - start, self.augment != Augment()
        return TaskData(take, size, capacity, changes=changes)
