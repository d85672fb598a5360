"""Claim 7: HAT and BatchNorm cannot be combined, and toy models must be adjusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from jaxcl.nn.layers import NORMS
from jaxcl.strategies import label

from . import resnet
from .claim import Claim, Effect, Estimate, Outcomes, Question, Run, above, below
from .decide import backward, difference, mean_of, paired
from .figures import intervals
from .streams import permuted_run

FORGETS, KEEPS = -2.0, -0.5
BEHIND = -5.0
RATE = 0.02  # learning rate of every row on the BatchNorm network
OTHERS = ("bp", "ewc", "gpm")
CLIP = 1.0
# Adjustment -> fields; only HAT is adjusted, by one of them at a time.
ADJUSTMENTS: Mapping[str, Mapping[str, Any]] = {
    "no norm": {"model.norm": "none"},
    "a BatchNorm per task": {"model.norm": "batch_per_task"},
    "the batch's own statistics": {"model.norm": "batch_current"},
    "clip": {"optimizer.clip": CLIP},
    "rate .005": {"optimizer.lr": 0.005},
    "rate .05": {"optimizer.lr": 0.05},
}


def name_of(text: str) -> str:
    """The name of a run of HAT, from its norm or adjustment."""
    plain = "".join(c if c.isalnum() else "_" for c in text)
    return f"norm_hat_{plain}"


def runs(setting: str) -> tuple[Run, ...]:
    """HAT with each norm, other rows with BatchNorm, HAT adjusted; chooses nothing."""
    found = {}
    for norm in NORMS:
        found[name_of(norm)] = _run(setting, "hat", f"HAT, norm {norm}", norm, {})
    for row in OTHERS:
        found[f"norm_{row}"] = _run(setting, row, label(row), "batch", {})
    for text, fields in ADJUSTMENTS.items():
        title = f"HAT, {text}"
        found[name_of(text)] = _run(setting, "hat", title, "batch", fields)
    if setting == "quick":
        few = ("batch", "none", "clip")
        found = {name: found[name] for name in (*map(name_of, few), "norm_bp")}
    named = tuple(run._replace(name=name) for name, run in found.items())
    return named + resnet.runs(setting)


def _run(setting: str, row: str, title: str, norm: str, fields) -> Run:
    config = permuted_run(setting, row, number=5).config.copy_and_resolve_references()
    config.model.norm = norm
    config.optimizer.lr = RATE
    config.keep_weights = "none"
    if row == "hat":
        config.method.refuse_shared_norm = False
    config.update_from_flattened_dict(dict(fields))
    return Run("", title, config)


def forgets(norm: str) -> Effect:
    """BWT of HAT with one norm."""
    name = name_of(norm)

    def estimate(outcomes: Outcomes) -> Estimate:
        return mean_of(backward(outcomes[name].result))

    claimed = below(FORGETS) if norm == "batch" else above(KEEPS)
    return Effect(f"BWT of HAT, norm {norm}", (name,), estimate, claimed)


def behind(row: str) -> Effect:
    """Unadjusted HAT minus another row on the BatchNorm network."""
    names = (name_of("batch"), f"norm_{row}")
    return difference(*names, f"HAT − {label(row)}", below(BEHIND))


def removed_by(text: str) -> Effect:
    """Adjusted HAT minus each of three rows: the lowest difference, and lowest ends.

    The lower end is the lowest of the three intervals' lower ends, and likewise the
    upper end. So the result lies above the margin if all three intervals do, and below
    it if one of them does; it is not an interval of one difference.
    """
    names = (name_of(text), *(f"norm_{row}" for row in OTHERS))

    def estimate(outcomes: Outcomes) -> Estimate:
        ours, *others = (outcomes[name] for name in names)
        each = [paired(ours, other) for other in others]
        ends = (
            min(getattr(e, part) for e in each) for part in ("value", "low", "high")
        )
        return Estimate(*ends, failed=sum(e.failed for e in each))

    return Effect(
        f"HAT, {text}, − BP, EWC, GPM: lowest value and ends",
        names,
        estimate,
        above(BEHIND),
    )


def figure(outcomes: Outcomes, report: Mapping[str, Any]) -> Figure:
    """Every effect with its interval."""
    return intervals(report, "points")


def shown(outcomes: Outcomes) -> list[str]:
    """ACC and BWT of every run."""
    names = [*map(name_of, NORMS), *map(name_of, ADJUSTMENTS)]
    names += [f"norm_{row}" for row in OTHERS]
    lines = []
    for name in names:
        outcome = outcomes.get(name)
        if outcome is None:
            continue
        failed = sum(status != "ok" for status in outcome.result.status)
        acc = 100 * outcome.result.matrix[:, -1].mean(1)
        lines.append(
            f"| {outcome.run.label} | {acc.mean():.2f} | "
            f"{backward(outcome.result).mean():.2f} | {failed}/{len(acc)} |"
        )
    if lines:
        head = ["| Run | ACC % | BWT | Failed |", "| --- | ---: | ---: | ---: |"]
        lines = head + lines
    return lines + resnet.shown(outcomes)


CLAIM = Claim(
    name="hat_norm",
    number=7,
    statement="HAT cannot be combined with BatchNorm; a toy model that works with "
    "other methods must be adjusted for HAT.",
    source="The author's note.",
    rule="(a) BWT of HAT: with BatchNorm the upper end of the 95 % t interval is below "
    "−2, with every other norm the lower end is above −.5. (b) On one BatchNorm "
    "network at one rate, HAT minus each of BP, EWC and GPM has its upper end below "
    "−5, and with one of the adjustments its lower end is above −5 for all three. (c) "
    "HAT on a reduced ResNet-18, per norm: shown, not decided.",
    runs=runs,
    questions=(
        Question("BatchNorm and the other norms", tuple(map(forgets, NORMS))),
        Question("unadjusted HAT falls behind", tuple(map(behind, OTHERS))),
        Question(
            "one adjustment removes it", tuple(map(removed_by, ADJUSTMENTS)), "some"
        ),
    ),
    figure=figure,
    shown=shown,
    notes=(
        "Permuted MNIST, ten tasks, 784-400-400 with a head per task, two epochs each, "
        "SGD at .02 for every row; HAT's refusal of a shared BatchNorm is switched "
        "off. The configs' own settings, none chosen here: HAT's λ .75 and clip 10,000 "
        "(the adjustment: 1), EWC's λ 100 and clip 10, GPM's threshold .97.",
        "(c): the chart's training at a rate of .02, batch 64, HAT's λ .75 and clip, "
        "none of it chosen.",
    ),
)
