"""A run is known by its config: two claims that need the same run share it."""

from __future__ import annotations

import hashlib
import json

from ml_collections import ConfigDict

from .. import config as configs
from ..runs.folders import CHANGES_NOTHING


def key_of(config: ConfigDict) -> str:
    """The name of a run's folder: readable, and its own among all configs.

    A field at its default does not count: one that is new changes no key. Nor does
    which weights are kept.
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
