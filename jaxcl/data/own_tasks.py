"""Tasks of one's own: given one by one, with classes that may come again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcl.checks import require
from jaxcl.data import readable
from jaxcl.data.arrays import NAMES, from_arrays
from jaxcl.data.reading import (
    AS_IT_LIES,
    SPLIT,
    Reading,
    drawn_for_test,
    require_effect,
    require_reading,
)
from jaxcl.data.source import Source, Tasks


def from_tasks(
    tasks: Mapping[str, Any] | Sequence[Any],
    *,
    reading: Reading = AS_IT_LIES,
    cache_dir: str | None = None,
) -> Source:
    """Makes a data set whose tasks are given, each with its own examples.

    Labels name classes: the same label in two tasks is the same class, seen again. So
    domains may share their classes or lack some, and classes may come back. What a
    network's outputs stand for is the scenario's matter: "domain", an output for each
    class, in play in all tasks; "class", an output for each class in the order in which
    they first appear; "task", outputs of its own for each class of each task.

    Args:
      tasks: each (x_train, y_train), (x_train, y_train, x_test, y_test) or a mapping
        with these names, as for `from_arrays`; in a sequence, or by the task's name.
      reading: gives the share for testing, for tasks without a test part, and its seed.
      cache_dir: the cache; JAXCL_CACHE, else the user's cache folder.

    Returns:
      A `Source` for `make_stream(kind="split", num_tasks=T)`. On the command line a
      function that returns such tasks is the data set,
      ``--config.data.dataset=my_module:tasks``.

    Raises:
      ValueError: as `from_arrays`, naming the task; a test label that its task's
        training part has not.

    Example:
      >>> import numpy as np, jaxcl
      >>> x = np.zeros([6, 4], np.uint8)
      >>> photos, sketches = (x, ["cat", "dog"] * 3), (x, ["dog", "elk"] * 3)
      >>> source = jaxcl.data.from_tasks({"photos": photos, "sketches": sketches})
      >>> stream = jaxcl.data.make_stream(
      ...     source, (0,), kind="split", scenario="class", num_tasks=2)
      >>> stream.task_names, stream.logit_mask.astype(int).tolist()
      (('photos', 'sketches'), [[1, 1, 0], [1, 1, 1]])
    """
    require_reading(reading)
    require_effect(reading, "tasks of one's own", "image_size", "faulty")
    named = isinstance(tasks, Mapping)
    names = [str(n) for n in tasks] if named else []
    given = list(tasks.values() if isinstance(tasks, Mapping) else tasks)
    require(len(given) > 0, "tasks must be at least one, got none")
    names = names or [f"task {t + 1}" for t in range(len(given))]
    if all(isinstance(one, Sequence | Mapping) and len(one) == 4 for one in given):
        require_effect(reading, "tasks with x_test", *SPLIT)
    parts = [_parts(one, n, reading) for one, n in zip(given, names, strict=True)]
    arrays = [_joined([part[i] for part in parts], NAMES[i]) for i in range(4)]
    source = from_arrays(*arrays, cache_dir=cache_dir)
    train, test = (
        np.repeat(np.arange(len(parts)), [len(part[i]) for part in parts])
        for i in (1, 3)
    )
    notes = [
        f"{name}: {note}"
        for t, name in enumerate(names)
        for note in readable.untested(
            source.train_y[train == t], source.test_y[test == t], source.class_names
        )
    ]
    return source._replace(
        tasks=Tasks(train.astype(np.int32), test.astype(np.int32), tuple(names)),
        notes=tuple(notes),
    )


def _parts(given: Any, name: str, reading: Reading) -> list[np.ndarray]:
    """A task's x_train, y_train, x_test and y_test; the test part drawn if missing."""
    if isinstance(given, Mapping) and set(given) in (set(NAMES), set(NAMES[:2])):
        given = [given[n] for n in NAMES if n in given]
    if not isinstance(given, tuple | list) or len(given) not in (2, 4):
        raise ValueError(
            f"{name} must be (x_train, y_train), (x_train, y_train, x_test, y_test) or "
            f"a mapping with these names, got {type(given).__name__}"
        )
    found = []
    for i in range(0, len(given), 2):
        x = readable.images(given[i], f"{name}: {NAMES[i]}")
        y = readable.labels(given[i + 1], f"{name}: {NAMES[i + 1]}")
        require(
            len(x) == len(y) > 0,
            f"{name}: {NAMES[i]} and {NAMES[i + 1]} need the same number of rows, "
            f"above 0, got {len(x)} and {len(y)}",
        )
        found += [x, y]
    if len(found) == 2:
        x, y = found
        test = drawn_for_test(y, reading)
        require(test.any(), f"{name}: no class has two examples to draw a test part")
        return [x[~test], y[~test], x[test], y[test]]
    unknown = np.setdiff1d(found[3], found[1])
    require(
        not len(unknown),
        f"{name}: y_test has labels that y_train has not: {unknown[:5].tolist()}",
    )
    return found


def _joined(parts: list[np.ndarray], what: str) -> np.ndarray:
    shapes = sorted({part.shape[1:] for part in parts})
    require(
        len(shapes) == 1,
        f"all tasks need examples of one shape, got {what} of {shapes}",
    )
    kinds = {part.dtype.kind in "US" for part in parts}
    require(len(kinds) == 1, f"{what} of all tasks must be numbers, or all be text")
    return np.concatenate(parts)


def require_alone(source: Source, num_tasks: int, kind: str, **settings: Any) -> None:
    """Refuses settings that say what the tasks are, where the data say it.

    Args:
      source: has tasks of its own.
      num_tasks, kind: of `make_stream`.
      **settings: further ones of `make_stream`; at their default, None or "fixed".

    Raises:
      ValueError: the message gives value and rule.
    """
    assert source.tasks is not None
    number = len(source.tasks.names)
    require(
        num_tasks == number,
        f"num_tasks must be {number}, as {source.name} has tasks of its own, got "
        f"{num_tasks}",
    )
    require(
        kind == "split",
        f"tasks of {source.name}'s own make a split stream, not a {kind} one",
    )
    for name, value in settings.items():
        plain = isinstance(value, str) and value == "fixed"
        require(
            value is None or plain,
            f"{name} is for data without tasks of their own, got {value!r}",
        )


def labels_of(source: Source, scenario: str) -> tuple[np.ndarray, list[int]]:
    """Which output each class of each task has, and how many each task brings.

    Returns:
      int32[T, classes], −1 for a class that is not in the task; and for
      `jaxcl.heads.scenario_mask` the number of outputs that come with each task.
    """
    assert source.tasks is not None
    names, total = source.tasks.names, len(source.class_names)
    label = np.full((len(names), total), -1, np.int32)
    seen, sizes = np.full(total, -1, np.int32), []
    first = 0  # of the outputs that come next
    for t in range(len(names)):
        classes = np.unique(source.train_y[source.tasks.train == t])
        if scenario == "task":
            label[t, classes] = np.arange(len(classes)) + first
            new = len(classes)
        else:
            fresh = classes[seen[classes] < 0]
            seen[fresh] = np.arange(len(fresh)) + first
            label[t, classes] = classes if scenario == "domain" else seen[classes]
            new = len(fresh)
        first += new
        sizes.append(total if scenario == "domain" else new)
    return label, sizes
