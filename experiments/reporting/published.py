"""Published accuracies that recorded runs are compared with, in per cent.

They are from the papers' tables; "±" is over the authors' seeds.
"""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """One published average accuracy.

    Attributes:
      accuracy: ACC, in per cent.
      spread: its ±; None: not given.
      source: the paper.
    """

    accuracy: float
    spread: float | None
    source: str


_GPM = "Saha et al. 2021"
_AGEM = "Chaudhry et al. 2019"
_OWM = "Zeng et al. 2019"
_SCENARIOS = "van de Ven & Tolias 2018"
_WIDER = "van de Ven & Tolias 2019"  # EWC with more strengths tried

# Config -> row -> figure.
PUBLISHED: dict[str, dict[str, Figure]] = {
    "permuted_mnist": {
        "ewc": Figure(89.97, 0.57, _GPM),
        "gpm": Figure(93.91, 0.16, _GPM),
        "owm": Figure(95.21, None, _OWM),
        "joint": Figure(96.70, 0.02, _GPM),
    },
    "permuted_mnist_online": {
        "bp": Figure(47.9, 1.3, _AGEM),
        "ewc": Figure(68.3, 0.7, _AGEM),
        "mas": Figure(69.6, None, _AGEM),
        "agem": Figure(89.1, 0.14, _AGEM),
        "joint": Figure(95.3, None, _AGEM),
    },
    "split_mnist_task": {
        "bp": Figure(85.15, None, _SCENARIOS),
        "ewc": Figure(98.64, None, _WIDER),
        "si": Figure(99.14, None, _SCENARIOS),
        "lwf": Figure(99.60, None, _SCENARIOS),
        "joint": Figure(99.64, None, _SCENARIOS),
    },
    "split_mnist_domain": {
        "bp": Figure(57.33, None, _SCENARIOS),
        "ewc": Figure(63.95, None, _WIDER),
        "si": Figure(63.77, None, _SCENARIOS),
        "lwf": Figure(71.02, None, _SCENARIOS),
        "joint": Figure(98.41, None, _SCENARIOS),
    },
    "split_mnist_class": {
        "bp": Figure(19.90, None, _SCENARIOS),
        "ewc": Figure(20.01, None, _WIDER),
        "si": Figure(20.04, None, _SCENARIOS),
        "lwf": Figure(24.17, None, _SCENARIOS),
        "joint": Figure(97.93, None, _SCENARIOS),
    },
}

LEAST = 1.0
"""Points by which a reproduction may always differ: other draws, other code."""


def compared(accuracy: float, figure: Figure) -> str:
    """ "reproduced", or how many points above or below the published figure.

    A result is reproduced if it differs by at most one point or twice the published
    spread, whichever is larger.

    Args:
      accuracy: the mean over seeds, in per cent.
      figure: what was published.
    """
    gap = accuracy - figure.accuracy
    if abs(gap) <= max(LEAST, 2 * (figure.spread or 0.0)):
        return "reproduced"
    return f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'}"
