"""A claim's page, from its `claim.json` alone: as Markdown, and in short as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def in_words(report: Report) -> str:
    """The verdicts with their numbers, one line per effect, for a terminal."""
    lines = [f"{report['number']}. {report['claim']}: {report['verdict'].upper()}"]
    if not report["decides"]:
        lines[0] += "  (quick: decides nothing)"
    lines.append(f"   {report['statement']}")
    for question in report["questions"]:
        lines.append(f"   {question['name']}: {question['verdict']}")
        lines += [f"      {_effect_in_words(e)}" for e in question["effects"]]
    if report["missing"]:
        lines.append(f"   not run: {', '.join(report['missing'])}")
    return "\n".join(lines)


def _effect_in_words(effect: Report) -> str:
    if "effect" not in effect:
        return f"{effect['name']}: not yet run"
    words = f"{effect['name']}: {number(effect['effect'])} "
    words += f"{interval(effect['interval'])} {effect['unit']}, "
    words += f"claimed {claimed(effect['claimed'])}: {effect['verdict']}"
    known = [(name, effect[key]) for key, name in TESTS if _is(effect[key])]
    tests = [f"{name} {p_value(p)}" for name, p in known]
    return words + (f" ({', '.join(tests)})" if tests else "")


TESTS = (("p_t", "p(t)"), ("p_holm", "Holm"), ("p_sign", "p(sign)"))


def markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The page as Markdown.

    Args:
      report: of `experiments.claims.report`, as in ``claim.json``.
      figures: names of the PNG files beside the page.
    """
    lines = [
        f"# Claim {report['number']}, `{report['claim']}`: {report['verdict']}",
        "",
        f"> {safe(report['statement'])}",
        "",
        f"Source: {safe(report['source'])}",
        "",
        f"Rule: {safe(report['rule'])}",
        "",
        f"Setting `{report['setting']}`"
        + ("." if report["decides"] else ": a quick look that decides nothing.")
        + f" Run again: `python -m experiments.claims --claim={report['claim']} "
        f"--setting={report['setting']}`",
        "",
    ]
    lines += [f"![{report['claim']}]({name})\n" for name in figures]
    lines += _verdicts(report["questions"])
    lines += ["", _about_tests(report), ""]
    if report["shown"]:
        lines += ["## Shown, not decided", "", *report["shown"], ""]
    lines += _runs(report["runs"], report["missing"])
    lines += _trials(report["runs"])
    lines += ["## Notes", "", *(f"- {safe(n)}" for n in report["notes"]), ""]
    return "\n".join(lines)


def _verdicts(questions: Sequence[Report]) -> list[str]:
    lines = [
        "## Verdicts",
        "",
        "| Question | Verdict | Effect | Value | 95 % interval | Claimed "
        "| The author's | Verdict of the effect | p (t) | Holm | p (sign) |",
        "| --- | --- | --- | ---: | --- | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for question in questions:
        rule = f" ({question['rule']})" if len(question["effects"]) > 1 else ""
        for i, effect in enumerate(question["effects"]):
            first = [safe(question["name"]) + rule, f"**{question['verdict']}**"]
            cells = first if i == 0 else ["", ""]
            lines.append(_row(cells + _cells(effect)))
    return lines


def _cells(effect: Report) -> list[str]:
    done = "effect" in effect
    tests = [p_value(effect[key]) if done else "–" for key, _ in TESTS]
    published = effect["published"]
    failed = f", {effect['failed']} seeds failed" if done and effect["failed"] else ""
    return [
        safe(effect["name"]),
        f"{number(effect['effect'])} {effect['unit']}" if done else "–",
        interval(effect["interval"]) if done else "–",
        claimed(effect["claimed"]),
        "–" if published is None else number(published),
        effect["verdict"] + failed,
        *tests,
    ]


def _about_tests(report: Report) -> str:
    effects = [e for q in report["questions"] for e in q["effects"]]
    seeds = sorted({len(e.get("per_seed", ())) for e in effects})
    few = [n for n in seeds if 0 < n <= 5]
    text = (
        "Held: the 95 % interval lies wholly in the claimed range; did not hold: "
        "wholly outside it; else undecided. p-values are of the effect against its "
        "margin; they decide nothing. Holm: the paired t-test's, over all effects of "
        "this claim."
    )
    if few:
        text += (
            f" With {few[0]} seeds the exact sign-flip test cannot go below "
            f"{2 / 2 ** few[0]:.4g}."
        )
    return text


def _runs(runs: Sequence[Report], missing: Sequence[str]) -> list[str]:
    lines = [
        "## Runs",
        "",
        "| Run | ACC % | lowest, highest | Tasks 1–3 | Later tasks | BWT | Seeds "
        "| Failed | Settings | Trials | Seconds | Device | Commit |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- "
        "| ---: | --- | ---: | ---: | --- | --- |",
    ]
    for run in runs:
        acc = [a for a in run["acc"] if a is not None]
        parts = [number(p["acc_mean"]) for p in run["acc_of_tasks"]] + ["–", "–"]
        settings = ", ".join(f"`{k}={plain(v)}`" for k, v in run["settings"].items())
        lines.append(
            _row(
                [
                    f"{safe(run['label'])} (`{run['config']}`)",
                    number(run["acc_mean"]),
                    f"{number(min(acc))}, {number(max(acc))}" if acc else "–",
                    *parts[:2],
                    number(run["bwt_mean"]),
                    _span(run["seeds"]),
                    str(len(run["failed"])),
                    settings,
                    str(len(run["trials"])),
                    "–" if run["seconds"] is None else f"{run['seconds']:.0f}",
                    run["device"],
                    f"`{(run['commit'] or 'unknown')[:10]}`",
                ]
            )
        )
    if missing:
        lines += ["", f"Not yet run: {safe(', '.join(missing))}."]
    return [*lines, ""]


def _trials(runs: Sequence[Report]) -> list[str]:
    tried = [run for run in runs if run["trials"]]
    if not tried:
        return []
    lines = [
        "## How settings were chosen",
        "",
        "On validation data of one seed that decides nothing. Accuracy: mean over the "
        "first tasks after the last of them; the chosen setting in bold. Where it lies "
        "at an end of what was tried, a better one may lie beyond.",
        "",
        "| Run | Tried: accuracy % | At an end |",
        "| --- | --- | --- |",
    ]
    for run in tried:
        name = f"{safe(run['label'])} (`{run['config']}`)"
        trials = "; ".join(map(_trial, run["trials"]))
        lines.append(_row([name, trials, ", ".join(_at_an_end(run["trials"])) or "–"]))
    return [*lines, ""]


def _at_an_end(trials: Sequence[Report]) -> list[str]:
    """The fields of the chosen setting with the lowest or highest value tried."""
    (chosen,) = (t["fields"] for t in trials if t["chosen"])
    found = []
    for key, value in chosen.items():
        values = {t["fields"][key] for t in trials if key in t["fields"]}
        if len(values) > 1 and value in (min(values), max(values)):
            side = "lowest" if value == min(values) else "highest"
            found.append(f"{key.rpartition('.')[2]} {plain(value)}, the {side}")
    return found


def _trial(trial: Report) -> str:
    fields = ", ".join(
        f"{key.rpartition('.')[2]} {plain(value)}"
        for key, value in trial["fields"].items()
    )
    accuracy = trial["accuracy"]
    score = "failed" if accuracy is None else f"{100 * accuracy:.1f}"
    text = f"{fields} ({trial['tasks']} tasks): {score}"
    return f"**{text}**" if trial["chosen"] else text


def number(value: float | None) -> str:
    """A number with two decimals; a dash if it is unknown."""
    return "–" if value is None else f"{value + 0.0:.2f}"


def plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def interval(ends: Sequence[float | None]) -> str:
    return f"[{number(ends[0])}, {number(ends[1])}]"


def claimed(ends: Sequence[float | None]) -> str:
    """The claimed range in words: "> 2", "< −5", "between -5 and 5"."""
    low, high = ends
    if low is None:
        return f"< {plain(high)}"
    return (
        f"> {plain(low)}" if high is None else f"between {plain(low)} and {plain(high)}"
    )


def p_value(p: float | None) -> str:
    if not _is(p):
        return "–"
    assert p is not None
    return "< .001" if p < 0.001 else f"{p:.3f}"


def _is(p: float | None) -> bool:
    return p is not None and not math.isnan(p)


def _span(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}–{seeds[-1]}" if whole else ", ".join(map(str, seeds))


def safe(text: str) -> str:
    """Escapes the characters of a text that Markdown would interpret, as in BP**."""
    return re.sub(r"([\\|*_<])", r"\\\1", text)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
