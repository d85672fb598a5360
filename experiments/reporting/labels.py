"""The names of a table's rows."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from jaxcl.fields import FIELDS, flat
from jaxcl.strategies import label

from ..runs.results import Result


def measured_on(r: Result) -> str:
    """Whose accuracies a run's are: "test" or "valid"."""
    return str((r.config or {}).get("measure", "test"))


def labels(results: Sequence[Result]) -> list[str]:
    """Names the rows; adds what differs between benchmarks, then a number if needed."""
    kinds = [
        (r.config_name, r.scenario, f"T = {len(r.task_names)}", measured_on(r))
        for r in results
    ]
    differs = [len(set(values)) > 1 for values in zip(*kinds, strict=True)]
    # Two methods from other packages may have the same name in two modules.
    rows_of = Counter(label(row) for row in {result.row for result in results})
    of_data = _data_in_words(results, kinds)
    names, seen = [], Counter[str]()
    for result, kind, data in zip(results, kinds, of_data, strict=True):
        name = label(result.row)
        name = result.row if rows_of[name] > 1 else name
        shown = [value for value, keep in zip(kind, differs, strict=True) if keep]
        shown += data
        name += f" ({', '.join(shown)})" if shown else ""
        names.append(name)
    alike: dict[str, list[Result]] = {name: [] for name in names}
    for name, result in zip(names, results, strict=True):
        alike[name].append(result)
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        apart = _in_words(result, alike[name])
        full = f"{name} ({apart})" if apart else name
        seen[full] += 1
        names[i] = full if seen[full] == 1 else f"{full} #{seen[full]}"
    return names


def _data_in_words(
    results: Sequence[Result], kinds: Sequence[tuple[str, ...]]
) -> list[list[str]]:
    """For each run up to three fields of the data in which its benchmark's runs differ.

    They are told of every row if the data sets differ, or one method's data do: told of
    that method alone, they would leave open which data the others are of.

    Args:
      results: the runs.
      kinds: the benchmark of each.
    """
    data = [_data_of(r) for r in results]
    found: list[list[str]] = []
    apart = {kind: _apart(results, data, kinds, kind) for kind in set(kinds)}
    for r, own, kind in zip(results, data, kinds, strict=True):
        names = apart[kind] if r.config is not None else []
        shown = [f"{name}={own[name]}" for name in names[:3]]
        found.append([*shown, "…"] if names[3:] else shown)
    return found


def _apart(
    results: Sequence[Result],
    data: Sequence[dict[str, Any]],
    kinds: Sequence[tuple[str, ...]],
    kind: tuple[str, ...],
) -> list[str]:
    values: dict[str, set[str]] = defaultdict(set)
    of_row: dict[tuple[str, str], set[str]] = defaultdict(set)
    for r, own, k in zip(results, data, kinds, strict=True):
        if k == kind and r.config is not None:
            for name, value in own.items():
                values[name].add(repr(value))
                of_row[name, r.row].add(repr(value))
    found = sorted(name for name in values if len(values[name]) > 1)
    found.sort(key=lambda name: name != "data.dataset")
    half = any(len(of) > 1 for of in of_row.values())
    return found if half or found[:1] == ["data.dataset"] else []


def _data_of(r: Result) -> dict[str, Any]:
    """The fields of a run's data."""
    return {k: v for k, v in _given(r).items() if k in FIELDS and k.startswith("data.")}


def _given(r: Result) -> dict[str, Any]:
    """The fields of a config, at their default where it is older than they are."""
    fields = {k: f.default for k, f in FIELDS.items() if not k.startswith("model.")}
    fields |= dict(flat(dict(r.config or {})))
    return json.loads(json.dumps(fields, default=str))  # a tuple is a list there


def _in_words(result: Result, alike: Sequence[Result]) -> str:
    """Up to three of the fields that tell a run from others of the same name.

    Names first: another model has other fields, too.
    """
    if any(r.config is None for r in alike):
        return ""
    of = ("data.", "joint", "method.", "model.", "optimizer.", "seeds", "train.")
    own, *others = (_given(r) for r in (result, *alike))
    fields = [
        name
        for name in sorted({*own}.union(*others))
        if name.startswith(of) and any(o.get(name) != own.get(name) for o in others)
    ]
    fields.sort(key=lambda name: not name.endswith(".name"))
    shown = [f"{name}={own.get(name)}" for name in fields[:3]]
    return ", ".join([*shown, "…"] if fields[3:] else shown)
