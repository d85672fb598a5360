"""One seed's random draws from a data set: classes, validation rows, pixel order."""

from __future__ import annotations

import jax
import numpy as np

from jaxcl.checks import require
from jaxcl.data.noise import redrawn
from jaxcl.data.own_tasks import labels_of
from jaxcl.data.stream import Part, SeedView


def seed_view(
    source,
    rng,
    *,
    kind,
    scenario,
    sizes,
    order,
    valid_fraction,
    stratified,
    first_permuted,
    limits,
    angles,
    noise,
) -> SeedView:
    total = len(source.class_names)
    order = rng.permutation(total) if order is None else order
    num_tasks = len(sizes)
    label = np.full((num_tasks, total), -1, np.int32)
    if source.tasks is not None:
        label, _ = labels_of(source, scenario)
    train, valid, test = [], [], []
    for t, (start, size) in enumerate(zip(starts(sizes), sizes, strict=True)):
        if source.tasks is None:
            first = start if kind == "split" else 0
            classes = order[first : first + size]
            shift = 0 if scenario == "domain" else start
            label[t, classes] = np.arange(size) + shift
            mine = [np.isin(y, classes) for y in (source.train_y, source.test_y)]
        else:
            mine = [of == t for of in (source.tasks.train, source.tasks.test)]
        in_train, in_test = map(np.flatnonzero, mine)
        rows = rng.permutation(in_train)[: limits[0]]
        held = round(valid_fraction * len(rows))
        require(
            held < len(rows) and (held > 0 or valid_fraction == 0),
            f"task {t + 1} has {len(rows)} training examples, too few to hold out "
            f"valid_fraction={valid_fraction:g} of them",
        )
        if stratified:
            rows = _by_class(rows, source.train_y[rows], held)
        valid.append(np.sort(rows[:held]))
        train.append(np.sort(rows[held:]))
        rows = in_test
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
    angle = angles.of_seed(rng, num_tasks) if kind == "rotated" else ()
    noisy: np.ndarray | tuple[()] = ()
    if noise.share:
        owner = source.tasks.train if source.tasks else None
        classes = [np.flatnonzero(t >= 0) for t in label]
        noisy = redrawn(source.train_y, classes, noise, rng, owner)
    parts = (_part(train), _part(valid), _part(test))
    return SeedView(*parts, label, pixel, angle, noisy)


def starts(sizes: list[int]) -> list[int]:
    """The first class of each task."""
    return [sum(sizes[:t]) for t in range(len(sizes))]


def _by_class(rows: np.ndarray, label: np.ndarray, held: int) -> np.ndarray:
    """Moves `held` rows to the front, with a proportional number of each class.

    A class with n of the N rows gives n · held/N, rounded down. The rows still missing
    come from the classes that lost most by rounding, one row each.
    """
    classes, which, count = np.unique(label, return_inverse=True, return_counts=True)
    exact = count * held / len(rows)
    quota = np.floor(exact).astype(int)
    missing = held - quota.sum()
    quota[np.argsort(quota - exact, kind="stable")[:missing]] += 1
    place = np.empty(len(rows), int)  # of a row within its class
    for c in range(len(classes)):
        place[which == c] = np.arange(count[c])
    return rows[np.argsort(place >= quota[which], kind="stable")]


def _part(tasks: list[np.ndarray]) -> Part:
    offset = np.concatenate([[0], np.cumsum([len(t) for t in tasks])])
    return Part(np.concatenate(tasks).astype(np.int32), offset.astype(np.int32))


def stack_views(views: list[SeedView]) -> SeedView:
    """Stacks views to a leading [S]; index arrays may differ a little in length."""

    def stack(*leaves):
        longest = max(len(leaf) for leaf in leaves)
        if leaves[0].ndim == 1:
            leaves = [np.pad(leaf, (0, longest - len(leaf))) for leaf in leaves]
        return np.stack(leaves)

    return jax.tree.map(stack, *views)
