"""BP at the rate of rows that have a strength, beside claim 2: it decides nothing.

Rows with a strength choose among rates up to .05, the others up to .2. So a ratio of
spreads compares rates as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from jaxcl import statistics
from jaxcl.strategies import label

from .claim import Array, Outcomes, Run
from .decide import accuracy
from .streams import MORE_RATES, RATES, permuted_run, split_mnist_run

RATE = max(RATES)
STREAMS: Mapping[str, Callable[..., Run]] = {
    "split MNIST": split_mnist_run,
    "permuted MNIST": permuted_run,
}


def runs() -> tuple[Run, ...]:
    """BP on both streams of MNIST, at `RATE`, with the seeds of its own run."""
    found = []
    for stream, make in STREAMS.items():
        run = make("toy", "bp", **{"optimizer.lr": RATE})
        run.config.keep_weights = "none"
        name, title = f"{run.name}_at_rate", f"BP at rate {RATE:g}, {stream}"
        found.append(run._replace(name=name, label=title, choice=()))
    return tuple(found)


def lines(
    outcomes: Outcomes,
    stream: str,
    names: Mapping[str, tuple[str, ...]],
    known: Mapping[str, Array],
) -> list[str]:
    """Of a stream: BP's spread at `RATE` over that of each row which chose `RATE`.

    Args:
      outcomes: of the claim.
      stream: its name.
      names: row -> names of its runs.
      known: row -> ACC of its seeds [S], of the rows that have run.
    """
    name = f"{names['bp'][0]}_at_rate"
    if name not in outcomes or "bp" not in known:
        return []
    bp, own = accuracy(outcomes[name].result), _rate(outcomes, names["bp"])
    found = [
        "",
        f"{stream[0].upper()}{stream[1:]}: rows with a strength chose among rates up "
        f"to {RATE:g}, BP among rates up to {max(MORE_RATES):g}. BP's SD is "
        f"{known['bp'].std(ddof=1):.2f} at {own:g}, which it chose, and "
        f"{np.std(bp, ddof=1):.2f} at {RATE:g}. Over rows that chose {RATE:g}:",
        "",
        f"| Row | SD of ACC | SD(BP at {RATE:g})/SD(row) | 95 % interval |",
        "| --- | ---: | ---: | --- |",
    ]
    for row, acc in known.items():
        if row != "bp" and _rate(outcomes, names[row]) == RATE:
            ratio = statistics.sd_ratio(bp, acc)
            found.append(
                f"| {label(row)} | {acc.std(ddof=1):.2f} | {ratio.ratio:.2f} "
                f"| [{ratio.low95:.2f}, {ratio.high95:.2f}] |"
            )
    return found


def _rate(outcomes: Outcomes, names: tuple[str, ...]) -> float:
    config = outcomes[names[0]].result.config
    return config["optimizer"]["lr"] if config else float("nan")
