"""Which classes each task has: shared evenly, in an order, or as given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from jaxcl.checks import require

ORDERS = ("fixed", "seed")


def cut_classes(
    names: Sequence[str],
    num_tasks: int,
    *,
    whole: bool,
    per_task: int | None,
    order: str | Sequence[int | str],
    given: Sequence[Sequence[int | str]] | None,
) -> tuple[np.ndarray | None, list[int]]:
    """The order of the classes, and how many of them each task has.

    Args:
      names: the names of all classes.
      num_tasks: T.
      whole: whether each task has all classes.
      per_task: how many each task has; None shares all classes as evenly as possible,
        and the first tasks then have one more.
      order: "fixed", "seed", or the classes as numbers or names, in a sequence or in
        text separated by commas.
      given: each task's classes.

    Returns:
      int[K], the labels task after task, and the number per task. The labels are None
      if each seed draws them.

    Raises:
      ValueError: a class is unknown or given twice; there are fewer classes than asked
        for; settings exclude each other.
    """
    total = len(names)
    order = order.tolist() if isinstance(order, np.ndarray) else order
    if whole:
        require(
            per_task in (None, total) and order == "fixed" and given is None,
            "a permuted or rotated stream gives every task all classes in their order; "
            f"classes_per_task {per_task}, class_order {order!r}, task_classes {given} "
            "are for split streams",
        )
        return np.arange(total), [total] * num_tasks
    if given is not None:
        require(
            per_task is None and order == "fixed",
            f"task_classes says all: classes_per_task {per_task} and class_order "
            f"{order!r} are for streams without",
        )
        require(
            len(given) == num_tasks and all(len(own) for own in given),
            f"task_classes must be num_tasks = {num_tasks} lists, none empty, got "
            f"{given}",
        )
        labels = numbers_of(names, list(chain(*given)), "task_classes")
        return labels, [len(own) for own in given]
    labels = None if order == "seed" else np.arange(total)
    if isinstance(order, str) and order not in ORDERS:
        order = [part.strip() for part in order.split(",")]
    if not isinstance(order, str):
        labels = numbers_of(names, order, "class_order")
        total = len(labels)
    least = per_task or 1
    require(
        num_tasks * least <= total,
        f"there are {total} classes, not enough for {num_tasks} tasks of {least}",
    )
    sizes = [least] * num_tasks if per_task else _shared(total, num_tasks)
    return labels, sizes


def numbers_of(
    names: Sequence[str], classes: Sequence[int | str], what: str
) -> np.ndarray:
    """Labels of classes given by name or number; text is read as a name first.

    Where all names are numbers, as in one's own labels 1, 2, 3, a number is a name.
    """
    number = {n: i for i, n in enumerate(names)}
    numeric = all(n.removeprefix("-").isdigit() for n in names)
    if not numeric:
        number = {str(i): i for i in range(len(names))} | number
    rule = f"be one of {', '.join(ORDERS)}, or " if what == "class_order" else ""
    labels: list[int] = []
    for one in classes:
        by_name = numeric or isinstance(one, str)
        label = number.get(str(one), -1) if by_name else int(one)
        require(
            0 <= label < len(names),
            f"{what} must {rule}name classes"
            f"{'' if numeric else f' of 0 to {len(names) - 1}'} ("
            f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}), got {one!r}",
        )
        require(label not in labels, f"{what}: class {one!r} is there twice")
        labels.append(label)
    return np.array(labels, int)


def _shared(total: int, num_tasks: int) -> list[int]:
    """Classes per task, as evenly as possible; the first tasks have one more."""
    share, left = divmod(total, num_tasks)
    return [share + (t < left) for t in range(num_tasks)]
