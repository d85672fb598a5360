"""The page of all recorded results: methods with published figures, and claims."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runs import results
from . import scores
from .claim_page import number, safe
from .published import LEAST, PUBLISHED, compared

INTRODUCTION = f"""\
# Results

Written by `python -m experiments.report --page=experiments/results` from what is
recorded in this folder; a test holds the two together. ACC is the average accuracy over
all tasks after the last, in per cent, mean ± standard deviation over seeds.
*Reproduced*: within {LEAST:g} point of the published figure, or twice its spread.
"""

PICTURES = {
    "ol_readings": "what a linear probe reads over the effective rank, for each "
    "reading of the orthogonal loss (`experiments.readings`)",
    "plane": "accuracy of two tasks over the plane through three networks, and "
    "methods' paths in it (`experiments.plane`)",
    "attention": "where two networks look in the same images after each task "
    "(`experiments.attention`)",
    "heads_split_mnist": "class-incremental split MNIST: the softmax beside heads in "
    "closed form on the same features (`experiments.heads`)",
    "heads_split_cifar100": "the same on split CIFAR-100",
}
"""Folder -> what its picture shows."""


def page(root: Path) -> str:
    """The page of a folder of results.

    Args:
      root: its sub-folders are comparisons, with a folder per run; ``claims`` has a
        folder per claim.

    Raises:
      ValueError: a result or a claim cannot be read.
    """
    parts = [INTRODUCTION, "## Methods\n", *_methods(root), ""]
    claims = sorted(root.glob("claims/*/claim.json"))
    if claims:
        parts += ["## Claims\n", *_claims(claims), ""]
    if (root / "bench.json").exists():
        parts += ["## What a step costs\n", *_bench(root / "bench.json"), ""]
    pictures = sorted(p for p in root.glob("*/*.png") if p.parent.name in PICTURES)
    if pictures:
        parts += ["## Pictures\n", *map(_picture, pictures), ""]
    return "\n".join(parts)


def _methods(root: Path) -> list[str]:
    lines = [
        "| Benchmark | Method | ACC % | BWT % | Published | Reproduced | Setting "
        "| Seeds | Failed | Seconds | Device | Commit |",
        "| --- | --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: | --- "
        "| --- |",
    ]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        runs = sorted(folder.glob("*/result.json")) if folder.name != "claims" else []
        if runs:
            rows = scores.rows(results.load(file) for file in runs)
            lines += [_method(row, folder.name) for row in rows]
    return lines


def _method(row: scores.Row, folder: str) -> str:
    r, acc, bwt = row.result, row.intervals["acc"], row.intervals["bwt"]
    figure = PUBLISHED.get(r.config_name, {}).get(r.row)
    published, verdict = "–", "–"
    if figure is not None:
        spread = "" if figure.spread is None else f" ± {figure.spread:g}"
        published = f"{figure.accuracy:.2f}{spread} ({figure.source})"
        verdict = "unfinished" if row.unfinished else compared(100 * acc.mean, figure)
    cells = [
        f"`{folder}`, {r.scenario}-incremental, {len(r.task_names)} tasks",
        safe(row.label),
        _percent(acc),
        _percent(bwt),
        published,
        verdict,
        setting(r.config),
        str(len(r.seeds)),
        str(len(row.failed)),
        f"{r.wall_s:.0f}",
        r.device,
        f"`{r.versions['commit'][:10]}`" if "commit" in r.versions else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def setting(config: Mapping[str, Any] | None) -> str:
    """Network, optimizer and length of a run, in one line."""
    if config is None:
        return "–"
    model, optimizer, train = config["model"], config["optimizer"], config["train"]
    net = model["name"]
    net += "".join(
        f" {key} {model[key]}" for key in ("widths", "width") if key in model
    )
    steps = f"{train['epochs']} epochs"
    if train["epochs"] is None:
        steps = f"{train['max_steps']} steps"
    own = ", ".join(f"{k} {v}" for k, v in config["method"].items() if k == "strength")
    parts = [net, f"{optimizer['name']} {optimizer['lr']:g}"]
    parts += [f"{steps} of batch {train['batch_size']}", *([own] if own else [])]
    return ", ".join(parts)


def _percent(interval: Any) -> str:
    if not interval.n:
        return "–"
    spread = f" ± {100 * interval.std:.2f}" if interval.n > 1 else ""
    return f"{100 * interval.mean + 0.0:.2f}{spread}"


def _bench(file: Path) -> list[str]:
    found = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"Medians of alternating rounds on {found['device']}, by `experiments.bench`, "
        f"commit {found['versions'].get('commit', 'unknown')[:10]}. × PyTorch is the "
        "same network, batch and optimizer in PyTorch in the same rounds. Operations: "
        "floating-point, of a step, as XLA counts them.",
        "",
        "| Case | What | µs per step and seed | × BP | operations × BP | × PyTorch |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        ratios = [row.get(k) for k in ("to_bp", "arithmetic_to_bp", "to_torch")]
        cells = ["–" if r is None else f"{r:.2f}" for r in ratios]
        time = f"{row['us_per_step_and_seed']:,.0f}"
        lines.append(
            f"| {row['case']} | {row['what']} | {time} | {' | '.join(cells)} |"
        )
    return lines


def _picture(file: Path) -> str:
    at = f"{file.parent.name}/{file.name}"
    return f"![{file.parent.name}]({at})\n\n`{at}`: {PICTURES[file.parent.name]}.\n"


def _claims(files: Sequence[Path]) -> list[str]:
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    found = sorted(zip(reports, files, strict=True), key=lambda pair: pair[0]["number"])
    lines = [
        "| Claim | Setting | Verdict | By question |",
        "| --- | --- | --- | --- |",
    ]
    for report, file in found:
        title = f"{report['number']}. [{report['claim']}](claims/{file.parent.name}/)"
        said = "; ".join(map(_question, report["questions"]))
        lines.append(
            f"| {title}: {safe(report['statement'])} | `{report['setting']}` "
            f"| **{report['verdict']}** | {said} |"
        )
    return lines


def _question(question: Mapping[str, Any]) -> str:
    """The verdict; with the effect and its interval if there is only one effect."""
    words = f"{safe(question['name'])}: {question['verdict']}"
    effects = [e for e in question["effects"] if "effect" in e]
    if len(question["effects"]) == 1 and effects:
        low, high = effects[0]["interval"]
        words += f" ({number(effects[0]['effect'])} [{number(low)}, {number(high)}])"
    return words
