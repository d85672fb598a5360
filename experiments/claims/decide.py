"""Numbers to verdicts: held, did not hold, undecided, not yet run, run in part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxcl import metrics, statistics

from ..runs.results import OK, Result
from .claim import Array, Claim, Effect, Estimate, Outcome, Outcomes, Question

HELD, NOT, UNDECIDED = "held", "did not hold", "undecided"
NOT_RUN = "not yet run"
PARTLY = "run in part"


class Judged(NamedTuple):
    """An effect with its verdict.

    Attributes:
      effect: of the claim.
      estimate: None while a run is missing.
      verdict: held, did not hold, undecided or not yet run.
      p_t: p of the two-sided paired t-test of the effect against its margin; NaN if the
        effect is not a mean over seeds.
      p_sign: p of the exact sign-flip test of the same.
      p_holm: `p_t` adjusted by Holm over all effects of the claim.
    """

    effect: Effect
    estimate: Estimate | None
    verdict: str
    p_t: float = math.nan
    p_sign: float = math.nan
    p_holm: float = math.nan


class Answer(NamedTuple):
    """A question with its verdict."""

    question: Question
    verdict: str
    effects: tuple[Judged, ...]


def verdict_of(estimate: Estimate, claimed: tuple[float, float]) -> str:
    """Held: the interval lies in the claimed range. Did not hold: wholly outside it."""
    low, high = estimate.low, estimate.high
    if estimate.failed or math.isnan(low) or math.isnan(high):
        return UNDECIDED
    # A ratio may be infinite, and a range without an end holds what is.
    at_least, at_most = claimed
    if at_least != -math.inf and high <= at_least:
        return NOT
    if at_most != math.inf and low >= at_most:
        return NOT
    above = at_least == -math.inf or low > at_least
    below = at_most == math.inf or high < at_most
    return HELD if above and below else UNDECIDED


def combined(verdicts: Sequence[str], rule: str = "every") -> str:
    """The verdict over several verdicts: "every" one has to hold, or "some" one.

    A missing verdict is never ignored: while one has not run, the whole verdict is "run
    in part", unless one that has run decides it whatever the others are ("every": one
    that did not hold; "some": one that held).
    """
    decides, other = (NOT, HELD) if rule == "every" else (HELD, NOT)
    if not set(verdicts) - {NOT_RUN}:
        return NOT_RUN
    if decides in verdicts:
        return decides
    if {NOT_RUN, PARTLY} & set(verdicts):
        return PARTLY
    return UNDECIDED if UNDECIDED in verdicts else other


def judge(claim: Claim, outcomes: Outcomes) -> tuple[str, tuple[Answer, ...]]:
    """The verdicts of a claim and of its questions, from the finished runs."""
    judged = [
        [_judge_effect(effect, outcomes) for effect in question.effects]
        for question in claim.questions
    ]
    adjusted = iter(statistics.holm([j.p_t for part in judged for j in part]))
    answers = []
    for question, part in zip(claim.questions, judged, strict=True):
        whole = tuple(j._replace(p_holm=float(next(adjusted))) for j in part)
        verdict = combined([j.verdict for j in whole], question.rule)
        answers.append(Answer(question, verdict, whole))
    return combined([answer.verdict for answer in answers]), tuple(answers)


def _judge_effect(effect: Effect, outcomes: Outcomes) -> Judged:
    if any(name not in outcomes for name in effect.needs):
        return Judged(effect, None, NOT_RUN)
    estimate = effect.estimate(outcomes)
    verdict = verdict_of(estimate, effect.claimed)
    tested = [_against(estimate, m) for m in effect.claimed if math.isfinite(m)]
    if not estimate.per_seed or not tested:
        return Judged(effect, estimate, verdict)
    # A range with two ends is left at either end, so the larger p counts.
    p_t, p_sign = (max(values) for values in zip(*tested, strict=True))
    return Judged(effect, estimate, verdict, p_t, p_sign)


def _against(estimate: Estimate, margin: float) -> tuple[float, float]:
    values = np.array(estimate.per_seed)
    test = statistics.paired_test(values, np.full(len(values), margin))
    return test.p, statistics.sign_flip_test(values - margin)


def mean_of(values: Array) -> Estimate:
    """The mean of an effect over seeds [S], with its t interval; NaN: failed seed."""
    i = statistics.interval(values)
    return Estimate(i.mean, i.low95, i.high95, tuple(values.tolist()), i.failed)


def accuracy(result: Result, first: int = 0, stop: int | None = None) -> Array:
    """Final ACC in per cent over the tasks [first, stop), [S]; NaN: failed seed."""
    acc = 100 * result.matrix[:, -1, first:stop].mean(axis=1)
    return np.where([status == OK for status in result.status], acc, np.nan)


def backward(result: Result) -> Array:
    """BWT in points [S]; NaN: failed seed, or trained on all tasks at once."""
    bwt = 100 * metrics.backward_transfer(result.matrix)
    return np.where([status == OK for status in result.status], bwt, np.nan)


def paired(
    x: Outcome, y: Outcome, measure: Callable[[Result], Array] = accuracy
) -> Estimate:
    """A measure of one run minus the same measure of another, seed by seed.

    Raises:
      ValueError: the runs do not have the same seeds.
    """
    if list(x.result.seeds) != list(y.result.seeds):
        raise ValueError(
            f"{x.run.name} and {y.run.name} are compared seed by seed, and have seeds "
            f"{list(x.result.seeds)} and {list(y.result.seeds)}"
        )
    return mean_of(measure(x.result) - measure(y.result))


def difference(
    x: str,
    y: str,
    name: str,
    claimed: tuple[float, float],
    published: float | None = None,
) -> Effect:
    """The effect ACC(x) − ACC(y) of two runs, by their names."""

    def estimate(outcomes: Outcomes) -> Estimate:
        return paired(outcomes[x], outcomes[y])

    return Effect(name, (x, y), estimate, claimed, published=published)
