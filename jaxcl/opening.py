"""Opens a finished run again."""

from __future__ import annotations

import importlib
import importlib.util
from os import PathLike
from pathlib import Path
from typing import Any


def load_run(workdir: str | PathLike[str]) -> Any:
    """Opens the folder of a run for your own analysis.

    Args:
      workdir: the run's ``--workdir``. It holds weights if the run had
        ``--config.keep_weights=last``, ``tasks`` or ``epochs``.

    Returns:
      An `experiments.runs.opened.Run`: ``config``, ``problem``, ``seeds``, ``result``,
      ``weights(seed, task, epoch)``, ``apply(weights, x, task)`` with the layers'
      inputs as taps, ``features(weights, seed, task)``, the layers' outputs,
      ``data(seed, task, part)`` as arrays, and ``records()``, a long table for
      ``pandas.DataFrame``. Seeds are given by their numbers, tasks count from 0, task
      −1 is the untrained network. It needs the extra ``jaxcl[experiments]``.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: its config.json is broken. A run of another version opens: what was
        recorded can be read; ``problem`` and what needs it may raise a ValueError.

    Example, ``workdir`` being a run's folder:

      >>> import jaxcl
      >>> run = jaxcl.load_run(workdir)
      >>> x, y = run.data(seed=0, task=0, part="test")
      >>> out = run.apply(run.weights(seed=0, task=1), x, task=0)
      >>> seen = run.features(run.weights(seed=0, task=1), seed=0, task=0)
      >>> rank = jaxcl.features.effective_rank(seen["hidden_0"])
    """
    # In a checkout the commands lie beside the library; once installed, inside it.
    found = importlib.util.find_spec("experiments")
    origin = found.origin if found else None
    beside = origin and Path(origin).parents[1] == Path(__file__).parents[1]
    package = "experiments" if beside else "jaxcl.experiments"
    return importlib.import_module(f"{package}.runs.opened").load_run(workdir)
