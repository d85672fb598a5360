"""A claim's report: everything that its page shows, as plain data for JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..runs.results import OK
from . import decide
from .claim import OF_RUN, Claim, Effect, Outcome, Outcomes

Report = dict[str, Any]

CHOSEN_ON = 3
"""The number of tasks that settings were chosen on; they are reported apart."""


def report(claim: Claim, setting: str, outcomes: Outcomes) -> Report:
    """The state of a claim, from the runs that are finished.

    Returns:
      Plain dicts, lists, numbers and None; numbers are rounded, so that
      the same runs give the same file.
    """
    verdict, answers = decide.judge(claim, outcomes)
    runs = claim.runs(setting)
    return _plain(
        {
            "claim": claim.name,
            "number": claim.number,
            "statement": claim.statement,
            "source": claim.source,
            "rule": claim.rule,
            "setting": setting,
            "decides": setting != "quick",
            "verdict": verdict,
            "questions": [_question(answer) for answer in answers],
            "runs": [_run(outcomes[r.name]) for r in runs if r.name in outcomes],
            "missing": [
                f"{r.label} ({r.config.name})" for r in runs if r.name not in outcomes
            ],
            "shown": list(claim.shown(outcomes)),
            "notes": [*claim.notes, *_second_runs(outcomes)],
        }
    )


def _second_runs(outcomes: Outcomes) -> list[str]:
    """Says which measurements are of a second run, and how far the two differ."""
    notes = []
    for outcome in outcomes.values():
        first, second = decide.accuracy(outcome.result), outcome.measured.get(OF_RUN)
        if second is not None and not np.allclose(first, second, equal_nan=True):
            notes.append(
                f"{outcome.run.label} ({outcome.result.config_name}): the recorded run "
                "kept no weights, so what is measured of them is of a second run with "
                f"its config and seeds, by later code. ACC {np.nanmean(second):.2f} %, "
                f"that of the recorded one {np.nanmean(first):.2f} %."
            )
    return notes


def _question(answer: decide.Answer) -> Report:
    return {
        "name": answer.question.name,
        "rule": answer.question.rule,
        "verdict": answer.verdict,
        "effects": [_effect(judged) for judged in answer.effects],
    }


def _effect(judged: decide.Judged) -> Report:
    effect: Effect = judged.effect
    found: Report = {
        "name": effect.name,
        "unit": effect.unit,
        "claimed": list(effect.claimed),
        "published": effect.published,
        "verdict": judged.verdict,
    }
    if judged.estimate is None:
        return found
    return found | {
        "effect": judged.estimate.value,
        "interval": [judged.estimate.low, judged.estimate.high],
        "per_seed": list(judged.estimate.per_seed),
        "failed": judged.estimate.failed,
        "p_t": judged.p_t,
        "p_sign": judged.p_sign,
        "p_holm": judged.p_holm,
    }


def _run(outcome: Outcome) -> Report:
    result, run = outcome.result, outcome.run
    acc = decide.accuracy(result)
    tasks = len(result.task_names)
    cut = (0, min(CHOSEN_ON, tasks), tasks)
    parts = [(a, b) for a, b in pairwise(cut) if a < b] if run.choice else []
    return {
        "name": run.name,
        "label": run.label,
        "row": result.row,
        "config": result.config_name,
        "key": outcome.key,
        "scenario": result.scenario,
        "tasks": tasks,
        "seeds": list(result.seeds),
        "failed": [s for s in result.status if s != OK],
        "acc": acc,
        "acc_mean": acc.mean(),
        "acc_of_tasks": [
            {"tasks": [a + 1, b], "acc_mean": decide.accuracy(result, a, b).mean()}
            for a, b in parts
        ],
        "bwt_mean": decide.backward(result).mean() if tasks > 1 else math.nan,
        "settings": _settings(outcome),
        # Rounded, trials that differ by little would be equal when they are read.
        "trials": [
            trial._asdict() | {"accuracy": _Exact(trial.accuracy)}
            for trial in outcome.trials
        ],
        "measured": dict(outcome.measured),
        "seconds": result.wall_s,
        "device": result.device,
        "commit": result.versions.get("commit"),
    }


def _settings(outcome: Outcome) -> Report:
    """The chosen settings, a clip if there is one, and the weights a task ends with."""
    found = next((dict(t.fields) for t in outcome.trials if t.chosen), {})
    config = outcome.result.config
    assert config is not None  # config.json lies beside every result
    clip = config["optimizer"].get("clip")
    if clip is not None:
        found["optimizer.clip"] = clip
    return found | {"train.select": config["train"]["select"]}


class _Exact(float):
    """A number that is not rounded."""


def _plain(value: Any) -> Any:
    """A value with types that JSON has; numbers rounded, NaN and ±∞ as None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, _Exact):
        return float(value) if math.isfinite(value) else None
    value = float(value)
    # Below 1, significant digits are kept instead: a setting may be 1e-5.
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if abs(value) < 1 else round(value, 4) + 0.0


def write(folder: Path, found: Report) -> None:
    """Writes ``claim.json``, replacing the file in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "claim.json"
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    temporary.replace(file)
