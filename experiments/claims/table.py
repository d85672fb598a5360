"""The table of all claims."""

from __future__ import annotations

from . import (
    chart,
    classifier,
    features_win,
    hat_forgets,
    hat_norm,
    hat_rate,
    hat_room,
    rank,
    rivals,
    short_term,
    transfer,
    tricks,
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
        rank.CLAIM,
        hat_forgets.CLAIM,
        hat_norm.CLAIM,
        hat_rate.CLAIM,
        hat_room.CLAIM,
        short_term.CLAIM,
        transfer.CLAIM,
        tricks.CLAIM,
        features_win.CLAIM,
    )
}
