"""Chains factories: one row for two methods, with the settings of both."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable

from jaxcl.compose import chain
from jaxcl.contract import Strategy
from jaxcl.kinds import settings_of
from jaxcl.schema import kinds_of
from jaxcl.types import Setup


def chain_factories(*factories: Callable[..., Strategy]) -> Callable[..., Strategy]:
    """Makes one factory from several; its strategy is the `chain` of theirs.

    Args:
      *factories: each ``(setup, *, settings) -> Strategy``.

    Returns:
      ``(setup, *, settings) -> Strategy`` with the settings of all. Its name and its
      `inspect.signature` join theirs, as in "frozen_slda".

    Raises:
      ValueError: two of them have the same setting.
    """
    own = [
        [p.replace(kind=p.KEYWORD_ONLY) for p in settings_of(factory)]
        for factory in factories
    ]
    name = "_".join(f.__name__ for f in factories)
    count = Counter(p.name for settings in own for p in settings)
    shared = [setting for setting, times in count.items() if times > 1]
    if shared:
        raise ValueError(f"{name}: several of them have a setting {shared[0]!r}")

    first = inspect.Parameter("setup", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([first, *(p for settings in own for p in settings)])

    def build(setup: Setup, **settings) -> Strategy:
        signature.bind(setup, **settings)  # refuses unknown settings

        def member(factory, of: list[inspect.Parameter]) -> Strategy:
            given = {p.name: settings[p.name] for p in of if p.name in settings}
            return factory(setup, **given)

        return chain(*map(member, factories, own))

    build.__name__ = build.__qualname__ = name
    build.__signature__ = signature  # type: ignore[attr-defined]
    build.__annotations__ = {k: v for f in factories for k, v in kinds_of(f).items()}
    return build
