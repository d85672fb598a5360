"""Plain fine-tuning: trains on each task as it comes and keeps nothing of the last.

The rows BP (last weights), BP* (`select="best"`) and joint (the stream gives all data
so far) are this strategy with other protocol settings.
"""

from __future__ import annotations

from jaxcl.contract import Strategy, strategy
from jaxcl.types import Setup


def finetune(setup: Setup) -> Strategy:
    """The strategy that does nothing: θ ← θ − lr ∇L_task(θ).

    Args:
      setup: not used; every factory takes it.

    Returns:
      A `Strategy` with state ``()``.
    """
    del setup
    return strategy()
