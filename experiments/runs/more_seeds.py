"""Makes one result of runs that differ in their seeds alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxcl.training.fingerprint import FILE_OF

from ..config import spelled_out
from . import measured
from .folders import CHANGES_NOTHING
from .results import Result, other_data


def joined(found: Iterable[Result]) -> list[Result]:
    """Joins finished results of the same config and different seeds.

    A field that a config lacks is at its default, and fields that change no result may
    differ. So may devices, versions and the code of jaxcl, which a note then names; a
    user's own methods and models may not, and images and labels may not.

    Args:
      found: results; those without a config and unfinished ones stay as they are. So
        do those that have other numbers for a seed than an equal result before them;
        a seed that two have with the same numbers is taken once.

    Returns:
      The results, a joined one in the place of its first; a note says what it is of,
      or why two are not joined.
    """
    groups: list[list[Result]] = []
    apart: dict[int, str] = {}  # place among the groups -> why it is a row of its own
    open_: dict[str, list[list[Result]]] = {}  # by what they share
    for result in found:
        finished = result.tasks_done == len(result.task_names)
        shared = _but_seeds(result) if finished else None
        alike = [] if shared is None else open_.setdefault(shared, [])
        same_data = [g for g in alike if not any(other_data(r, result) for r in g)]
        clashes = [_clashes(g, result) for g in same_data]
        if [] in clashes:
            group = same_data[clashes.index([])]
        else:
            if alike:
                near = (same_data or alike)[0]
                why = "it is of other images or labels"
                if clashes:
                    why = f"{_named(clashes[0])} in both, with other numbers"
                had = ", ".join(str(seed) for r in near for seed in r.seeds)
                apart[len(groups)] = f"not joined with the run of seeds {had}: {why}"
            group = []
            groups.append(group)
            alike.append(group)
        group.append(result)
    return [_one(group, apart.get(i, "")) for i, group in enumerate(groups)]


def _clashes(group: Sequence[Result], result: Result) -> list[int]:
    """The seeds for which a result has other numbers than the group."""
    return [
        seed
        for seed in result.seeds
        if any(not _same_numbers(r, result, seed) for r in group if seed in r.seeds)
    ]


def _same_numbers(a: Result, b: Result, seed: int) -> bool:
    i, j = ([*r.seeds].index(seed) for r in (a, b))
    return a.status[i] == b.status[j] and all(
        np.array_equal(x[i], y[j], equal_nan=True)
        for x, y in ((a.matrix, b.matrix), (a.baseline, b.baseline))
    )


def _once(group: Sequence[Result]) -> list[Result]:
    """The results, each seed in one of them: where it was measured most."""
    owner: dict[int, int] = {}
    for i in sorted(range(len(group)), key=lambda i: -len(group[i].features)):
        for seed in group[i].seeds:
            owner.setdefault(seed, i)
    found = []
    for i, r in enumerate(group):
        keep = [k for k, seed in enumerate(r.seeds) if owner[seed] == i]
        if keep:
            found.append(r if len(keep) == len(r.seeds) else _of(r, keep))
    return found


def _of(r: Result, keep: list[int]) -> Result:
    """A result of some of its seeds, with their share of the steps and seconds."""
    share = len(keep) / len(r.seeds)

    def cut(name: str, values: NDArray) -> NDArray:
        return values * share if name == measured.SECONDS else values[keep]

    return r._replace(
        seeds=[r.seeds[i] for i in keep],
        status=[r.status[i] for i in keep],
        matrix=r.matrix[keep],
        baseline=r.baseline[keep],
        steps=round(r.steps * share),
        wall_s=r.wall_s * share,
        report={q: {k: v[keep] for k, v in of.items()} for q, of in r.report.items()},
        features={name: cut(name, values) for name, values in r.features.items()},
    )


def _but_seeds(r: Result) -> str | None:
    if r.config is None:
        return None
    config = spelled_out(r.config)
    for field in CHANGES_NOTHING | {"seeds"}:
        config.pop(field, None)
    own = {k: v for k, v in _made_by(r).items() if k.startswith(FILE_OF)}
    parts = [config, own, r.row, r.scenario, list(r.task_names)]
    return json.dumps(parts, sort_keys=True)


def _made_by(r: Result) -> dict[str, str]:
    """Package or file -> its version or hash, at the end of a run."""
    last = r.sessions[-1] if r.sessions else {}
    return {**r.versions, "the code of jaxcl": str(last.get("code", "unknown"))}


def _one(runs: Sequence[Result], why: str) -> Result:
    """One result of several runs.

    Args:
      runs: a seed that several have has the same numbers in all.
      why: they were not joined with a result before; empty if there is none.
    """
    if why:
        runs = [runs[0]._replace(notes=[*runs[0].notes, why]), *runs[1:]]
    if len(runs) == 1:
        return runs[0]
    group = _once(runs)
    first, seeds = group[0], [", ".join(map(str, r.seeds)) for r in runs]
    note = f"of {len(runs)} runs, with the seeds {'; '.join(seeds)}"
    made = [_made_by(r) for r in runs]
    differ = [k for k in made[0] if len({m.get(k) for m in made}) > 1]
    if differ:
        note += f", which differ in the version of {', '.join(differ)}"
    if again := sorted({x for r in runs for x in r.seeds if _count(runs, x) > 1}):
        note += f"; {_named(again)} in several, with equal numbers, and taken once"
    quantities = dict.fromkeys(q for r in group for q in r.report)
    all_seeds = [seed for r in group for seed in r.seeds]
    return first._replace(
        seeds=all_seeds,
        config=dict(first.config or {}) | {"seeds": all_seeds},
        status=[status for r in group for status in r.status],
        matrix=np.concatenate([r.matrix for r in group]),
        baseline=np.concatenate([r.baseline for r in group]),
        steps=sum(r.steps for r in group),
        wall_s=sum(r.wall_s for r in group),
        device="; ".join(dict.fromkeys(r.device for r in group)),
        notes=[*dict.fromkeys(note for r in group for note in r.notes), note],
        sessions=[session for r in runs for session in r.sessions],
        report={
            q: _stacked([r.report.get(q, {}) for r in group], group) for q in quantities
        },
        features=_stacked([r.features for r in group], group),
    )


def _named(seeds: Sequence[int]) -> str:
    many = "s" if len(seeds) > 1 else ""
    return f"seed{many} {', '.join(map(str, seeds))} {'are' if many else 'is'}"


def _count(runs: Sequence[Result], seed: int) -> int:
    return sum(seed in r.seeds for r in runs)


def _stacked(
    parts: Sequence[Mapping[str, NDArray]], group: Sequence[Result]
) -> dict[str, NDArray]:
    """Arrays [S, ...] by name, of all seeds; NaN where a run has not measured them."""
    found = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        known = [part[name] for part in parts if name in part]
        if name == measured.SECONDS:
            found[name] = np.sum(known, axis=0)
            continue
        tail = np.max([values.shape[1:] for values in known], axis=0, initial=0)
        whole = []
        for part, result in zip(parts, group, strict=True):
            values = np.full((len(result.seeds), *map(int, tail)), np.nan)
            if name in part:
                values[tuple(map(slice, part[name].shape))] = part[name]
            whole.append(values)
        found[name] = np.concatenate(whole)
    return found
