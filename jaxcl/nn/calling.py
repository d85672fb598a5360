"""How a Flax model is called: which of its arguments are the task and the mode."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import jax

Arguments = Callable[[jax.Array, bool], tuple[tuple[Any, ...], dict[str, Any]]]
"""``(task, train) -> (args, kwargs)`` of a model's call, after its input."""
_NAMES = {
    "task": ("task", "tasks", "task_id", "task_ids"),
    "train": ("train", "training", "is_training", "is_train", "enable_dropout"),
    "test": ("deterministic", "inference", "use_running_average", "eval", "test")
    + ("evaluate", "testing", "is_eval", "is_test"),
}
_MEANS = {name: meaning for meaning, names in _NAMES.items() for name in names}
_BY_PLACE = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


def arguments(model: Any, kind: str) -> Arguments:
    """Finds what a Linen or NNX model's call takes beside its input, by the names.

    The task goes to ``task`` (``tasks``, ``task_id``), the mode to ``train``
    (``training``, ``is_training``, …) or, negated, to ``deterministic`` (``inference``,
    ``use_running_average``, ``eval``, …), wherever they stand and with or without
    underscores around them; of ``_`` alone the first is the task's place and the second
    the mode's. Any other argument keeps its default.

    Args:
      model: a module. A ``Sequential`` is given its input alone.
      kind: "Linen" or "NNX", for messages.

    Returns:
      The `Arguments` of its call: by position as far as nothing else lies between, as
      ``static_argnums`` counts them, and then by name.

    Raises:
      ValueError: a required argument has none of these names, or ``*`` or ``**`` leave
        open what the call takes; the message shows the signature.
    """
    _, *own = inspect.signature(type(model).__call__).parameters.values()
    if any(base.__name__ == "Sequential" for base in type(model).__mro__):
        return lambda task, train: ((), {})
    beside = [(p, _meaning(p, place)) for place, p in enumerate(own) if place]
    open_ = [p for p in own if p.kind is p.VAR_KEYWORD]
    open_ += [p for p in own[:1] if p.kind is p.VAR_POSITIONAL]
    lacking = [
        p
        for p, meaning in beside
        if not meaning and p.default is p.empty and p.kind is not p.VAR_POSITIONAL
    ]
    if open_ or lacking or not own:
        told = ", ".join(str(p).partition(":")[0] for p in open_ or lacking)
        raise ValueError(
            f"the call of the {kind} model {type(model).__name__} is "
            f"{inspect.signature(type(model).__call__)}: beside its input it is given "
            f"task, and train or deterministic, by these names; it needs {told or 'x'}"
        )
    first = list(
        itertools.takewhile(lambda pm: pm[1] and pm[0].kind in _BY_PLACE, beside)
    )
    later = {p.name: meaning for p, meaning in beside[len(first) :] if meaning}

    def given(task, train):
        of = {"task": task, "train": train, "test": not train}
        args = tuple(of[meaning] for _, meaning in first if meaning)
        return args, {name: of[meaning] for name, meaning in later.items()}

    return given


def _meaning(p: inspect.Parameter, place: int) -> str | None:
    name = p.name.strip("_")
    if not name and p.default is p.empty:
        return {1: "task", 2: "train"}.get(place)
    return _MEANS.get(name)
