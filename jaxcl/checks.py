"""Conditions on settings, raised before anything is traced."""

from __future__ import annotations

from typing import Any

from jax.core import Tracer


def require(holds: Any, message: str) -> None:
    """Refuses a setting; one that is traced passes.

    A setting that differs between the seeds of a run (`Problem.settings`) reaches a
    factory as a tracer, after each of its values has been checked.

    Args:
      holds: bool, or a traced one.
      message: quotes the value and the rule.

    Raises:
      ValueError: it does not hold.
    """
    if not isinstance(holds, Tracer) and not holds:
        raise ValueError(message)
