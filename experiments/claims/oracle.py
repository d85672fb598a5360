"""Oracle heads: what a linear classifier can read from a run's final features.

They are a diagnostic, not a method: they are fitted to the training data of all
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcl.features import accuracy

from ..runs.opened import load_run
from ..runs.readout import final, oracles
from ..runs.results import OK
from .claim import Array

HEADS = {"ridge": "oracle probe", "ncm": "oracle NCM", "slda": "oracle SLDA"}
"""Name in the recorded measurements -> name among `oracles`."""


def oracle_heads(folder: Path) -> Mapping[str, Array]:
    """Accuracy of each of `HEADS` on a run's final features.

    The features are what the classifier reads after the last task. The heads choose
    among the classes of all tasks, whether the run was told the task or not.

    Args:
      folder: of a run that has kept its last weights.

    Returns:
      Accuracies in per cent on the test data of all tasks, [S]; NaN: failed seed.

    Raises:
      FileNotFoundError: the run has not kept its weights.
    """
    run = load_run(folder)
    found: dict[str, list[float]] = {name: [] for name in HEADS}
    for seed, status in zip(run.seeds, run.result.status, strict=True):
        scores = dict.fromkeys(HEADS, np.nan)
        if status == OK:
            test, probes = final(run, seed, "test"), oracles(run, seed)
            scores = {h: accuracy(probes[name], *test) for h, name in HEADS.items()}
        for head, score in scores.items():
            found[head].append(100 * float(score))
    return {head: np.array(values) for head, values in found.items()}
