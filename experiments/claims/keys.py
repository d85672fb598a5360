"""The key of a run, made from its config: claims that need the same run share it."""

from __future__ import annotations

import hashlib
import json

from ml_collections import ConfigDict

from .. import config as configs
from ..runs.folders import CHANGES_NOTHING


def key_of(config: ConfigDict) -> str:
    """The name of a run's folder: readable, and unique to its config.

    Fields at their default are left out, so a new field changes no key. `keep_weights`
    is left out too.
    """
    neutral = configs.neutral(config.strategy)
    fields = {
        key: value
        for key, value in configs.spelled_out(config).items()
        if neutral.get(key, value) != value or key not in neutral
        if key not in CHANGES_NOTHING | {"keep_weights"}
    }
    text = json.dumps(fields, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{config.name}_{configs.folder(config.row)}_{digest}"


def path_of(module: str, name: str) -> str:
    """The path by which a config names a function of this folder.

    It is the same however the command was started: a console script has the folder
    inside jaxcl, and the key of a run must not depend on that.

    Args:
      module: its ``__name__``.
      name: the function's.
    """
    return f"experiments.claims.{module.rpartition('.')[2]}:{name}"
