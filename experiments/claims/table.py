"""The one table of claims."""

from __future__ import annotations

from . import (
    chart,
    classifier,
    features_win,
    hat_forgets,
    rivals,
    short_term,
    unstable,
)
from .claim import Claim

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        chart.CLAIM,
        unstable.CLAIM,
        rivals.CLAIM,
        classifier.CLAIM,
        hat_forgets.CLAIM,
        short_term.CLAIM,
        features_win.CLAIM,
    )
}
