"""How a Flax model is called: which of its arguments are the task and the mode."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax

Arguments = Callable[[jax.Array, bool], tuple[tuple[Any, ...], dict[str, Any]]]
"""``(task, train) -> (args, kwargs)`` of a model's call, after its input."""
_MEANS = {
    **dict.fromkeys(("task", "tasks", "task_id", "task_ids"), "task"),
    **dict.fromkeys(("train", "training", "is_training"), "train"),
    **dict.fromkeys(("deterministic", "inference", "use_running_average"), "test"),
}


def arguments(model: Any, kind: str) -> Arguments:
    """Finds what a Linen or NNX model's call takes beside its input.

    The task goes to ``task`` (``tasks``, ``task_id``), the mode to ``train``
    (``training``, ``is_training``) or, negated, to ``deterministic`` (``inference``,
    ``use_running_average``), wherever they stand; any other argument keeps its default.
    A model without such names that takes three arguments is called by position,
    ``model(x, task, train)``.

    Args:
      model: a module.
      kind: "Linen" or "NNX", for messages.

    Returns:
      The `Arguments` of its call.

    Raises:
      ValueError: a required argument is none of these; the message shows the signature.
    """
    signature = inspect.signature(type(model).__call__)
    _, *own = signature.parameters.values()
    of = [_MEANS.get(p.name.strip("_")) for p in own]
    named = {p.name: m for p, m in zip(own[1:], of[1:], strict=True) if m}

    def by_name(task, train):
        given = {"task": task, "train": train, "test": not train}
        return (), {name: given[meaning] for name, meaning in named.items()}

    def by_position(task, train):
        return (task, train), {}

    # nn.Sequential accepts any arguments, and passes them to its first layer.
    starred = bool(own) and own[0].kind is inspect.Parameter.VAR_POSITIONAL
    in_order = of[1:2] in ([None], ["task"]) and of[2:3] in ([None], ["train"])
    ways: list[Arguments] = [by_name]
    if not starred and in_order and not any(of[3:]):
        ways = [by_name, by_position] if named else [by_position, by_name]
    failed = None
    for way in ways:
        args, kwargs = way(None, False)  # type: ignore[arg-type]
        try:
            signature.bind(model, None, *args, **kwargs)
        except TypeError as error:
            failed = failed or error
            continue
        return way
    raise ValueError(
        f"the call of the {kind} model {type(model).__name__} is {signature}; beside x "
        "it is given task, and train or deterministic, if it takes them: "
        f"{failed}"
    )
