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
      found: results; those without a config, unfinished ones, and those that have a
        seed which an equal result before them has, stay as they are.

    Returns:
      The results, a joined one in the place of its first; a note says what it is of.
    """
    groups: list[list[Result]] = []
    open_: dict[str, list[list[Result]]] = {}  # by what they share
    for result in found:
        finished = result.tasks_done == len(result.task_names)
        shared = _but_seeds(result) if finished else None
        alike = [] if shared is None else open_.setdefault(shared, [])
        apart = (
            g
            for g in alike
            if not _seeds(g) & set(result.seeds)
            and not any(other_data(r, result) for r in g)
        )
        group = next(apart, None)
        if group is None:
            group = []
            groups.append(group)
            alike.append(group)
        group.append(result)
    return [_one(group) if len(group) > 1 else group[0] for group in groups]


def _seeds(group: Sequence[Result]) -> set[int]:
    return {seed for result in group for seed in result.seeds}


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


def _one(group: Sequence[Result]) -> Result:
    first, seeds = group[0], [", ".join(map(str, r.seeds)) for r in group]
    note = f"of {len(group)} runs, with the seeds {'; '.join(seeds)}"
    made = [_made_by(r) for r in group]
    differ = [k for k in made[0] if len({m.get(k) for m in made}) > 1]
    if differ:
        note += f", which differ in the version of {', '.join(differ)}"
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
        sessions=[session for r in group for session in r.sessions],
        report={
            q: _stacked([r.report.get(q, {}) for r in group], group) for q in quantities
        },
        features=_stacked([r.features for r in group], group),
    )


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
