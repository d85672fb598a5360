"""One table of a run's features: rank, probes, what was forgotten, conflict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxcl import features, metrics

from ..runs.measured import own_quantities
from .scores import Row
from .tables import write_csv

FORMULAS = (
    ("R[i, j]", "accuracy of a ridge probe on task j after i tasks, 0: untrained"),
    ("Rank", "effective rank exp(H(σ/Σσ)), mean over tasks j of the tasks' examples"),
    ("before, after", "of task j right before and right after it is trained"),
    ("Probe %", "mean_j R[T, j]; untrained: mean_j R[0, j]"),
    ("Forgotten", "mean_{j<T} (R[j, j] − R[T, j]); head: of the network's accuracy"),
    (
        "Lost",
        "mean_{j<T} (R[j, j] − R[T, j]) / (R[j, j] − R[j−1, j]), gains under 2 points "
        "left out; head: of the network's accuracy",
    ),
    ("CKA", "debiased, of task 1's examples after task 1 and after task T"),
    (
        "cos g, cos Δθ",
        "of the new task's gradient, and of the step taken, with old tasks' gradients, "
        "after its first epoch, below task heads; mean over pairs",
    ),
    (
        "–",
        "not measured; a mean over the seeds not failed, lowest – highest in the CSV",
    ),
)
COLUMNS = {
    "rank_untrained": "Rank untrained",
    "rank_before": "before",
    "rank_after": "after",
    "rank_end": "end",
    "dormant_end": "Dormant %",
    "probe_untrained": "Probe % untrained",
    "probe_end": "Probe %",
    "forgotten": "Forgotten %",
    "head_forgotten": "head forgot %",
    "lost": "Lost %",
    "head_lost": "head lost %",
    "cka": "CKA",
    "cos_gradient": "cos g",
    "cos_step": "cos Δθ",
}
PERCENT = {name for name, title in COLUMNS.items() if title.endswith("%")} | {
    "probe_untrained"
}
Scores = dict[str, NDArray[np.float64]]
"""Column -> one value per finished seed."""


def layers(row: Row) -> list[str]:
    """The layers with at least one measurement, in the order of the file."""
    wanted = (*LAYERED, *own_quantities(row.result.features))
    names = (name.partition("/")[::2] for name in row.result.features)
    return list(dict.fromkeys(layer for q, layer in names if q in wanted))


LAYERED = ("effective_rank", "probe_ridge", "cka", "feature_drift")


def own(rows: Sequence[Row]) -> list[str]:
    """What functions of one's own have measured in any of the rows."""
    each = [own_quantities(row.result.features) for row in rows]
    return list(dict.fromkeys(quantity for found in each for quantity in found))


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """The columns of a table and their titles; each own quantity has two."""
    more = {
        f"{quantity}_{when}": f"{quantity} {when}"
        for quantity in own(rows)
        for when in ("untrained", "end")
    }
    return COLUMNS | more


def of_layer(row: Row, layer: str, quantities: Sequence[str] = ()) -> Scores:
    """Every column of a layer, own quantities too; NaN where it was not measured."""
    done, keep = row.result.tasks_done, row.finished_seeds

    def matrix(quantity: str) -> NDArray[np.float64]:
        """[finished seeds, done + 1, done]"""
        found = row.result.features.get(f"{quantity}/{layer}")
        if found is None or found.shape[1] <= done:
            return np.full((int(keep.sum()), done + 1, done), np.nan)
        return np.asarray(found[keep][:, : done + 1, :done], np.float64)

    rank, probed = matrix("effective_rank"), matrix("probe_ridge")
    a, b = row.result.matrix[keep][:, :done, :done], row.result.baseline[keep][:, :done]
    answered = np.concatenate([b[:, None], a], axis=1)
    each = {quantity: matrix(quantity) for quantity in quantities}
    more = {
        f"{quantity}_{when}": found[:, at].mean(-1)
        for quantity, found in each.items()
        for when, at in (("untrained", 0), ("end", -1))
    }
    return more | {
        "rank_untrained": rank[:, 0].mean(-1),
        "rank_before": np.diagonal(rank, 0, -2, -1).mean(-1),
        "rank_after": np.diagonal(rank, -1, -2, -1).mean(-1),
        "rank_end": rank[:, -1].mean(-1),
        "dormant_end": matrix("dormant_share")[:, -1].mean(-1),
        "probe_untrained": probed[:, 0].mean(-1),
        "probe_end": probed[:, -1].mean(-1),
        "forgotten": features.representation_forgetting(probed),
        "head_forgotten": -metrics.backward_transfer(a),
        "lost": _mean(features.lost_share(probed)[:, :-1]),
        "head_lost": _mean(features.lost_share(answered)[:, :-1]),
        "cka": _place(row, f"cka/{layer}", (1, done)),
        "cos_gradient": _mean_conflict(row, "conflict_gradient"),
        "cos_step": _mean_conflict(row, "conflict_step"),
    }


def _place(row: Row, name: str, at: tuple[int, ...]) -> NDArray[np.float64]:
    """One element of an array for each finished seed; NaN if it was not measured."""
    found, keep = row.result.features.get(name), row.finished_seeds
    if found is None or any(i >= n for i, n in zip(at, found.shape[1:], strict=True)):
        return np.full(int(keep.sum()), np.nan)
    return np.asarray(found[(keep, *at)], np.float64)


def _mean_conflict(row: Row, quantity: str) -> NDArray[np.float64]:
    found = row.result.features.get(f"{quantity}/first epoch")
    keep = row.finished_seeds
    if found is None:
        return np.full(int(keep.sum()), np.nan)
    return _mean(np.float64(found[keep]).reshape(int(keep.sum()), -1))


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of the known values; NaN, without a warning, if none."""
    known = np.isfinite(values)
    count = known.sum(-1)
    total = np.where(known, values, 0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def text_table(rows: Sequence[Row]) -> str:
    """One line per method and layer, means over seeds; every formula stands below."""
    titles, quantities = columns(rows), own(rows)
    lines = [["Method", "Layer", *titles.values()]]
    for row in rows:
        for layer in layers(row):
            values = of_layer(row, layer, quantities)
            cells = [_cell(name, values[name]) for name in titles]
            lines.append([row.label, layer, *cells])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    name_width = max(len(name) for name, _ in FORMULAS)
    beneath = [f"{name:<{name_width}}  {rule}" for name, rule in FORMULAS]
    return "\n".join([*text, "", *beneath]) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """Raw numbers: mean, lowest and highest seed of each column; empty: unknown."""
    kinds, lines = ("mean", "min", "max"), []
    names, quantities = columns(rows), own(rows)
    header = ["method", "row", "layer"]
    header += [f"{c}_{kind}" for c in names for kind in kinds]
    for row in rows:
        for layer in layers(row):
            line: list[object] = [row.label, row.result.row, layer]
            found = of_layer(row, layer, quantities)
            for values in (found[name] for name in names):
                known = values[np.isfinite(values)]
                summary = (known.mean(), known.min(), known.max()) if len(known) else ()
                line += [float(v) for v in summary] or ["", "", ""]
            lines.append(line)
    return write_csv(header, lines)


def _cell(name: str, values: NDArray[np.float64]) -> str:
    mean = float(_mean(values))
    if np.isnan(mean):
        return "–"
    if name.startswith("rank_"):
        return f"{mean:.1f}"
    return f"{100 * mean:.1f}" if name in PERCENT else f"{mean:.2f}"


def measured_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows whose runs have measured features of a layer."""
    return [row for row in rows if layers(row) and row.result.tasks_done]
