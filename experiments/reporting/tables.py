"""The comparison table: one line per method, as text and Markdown.

Nothing is left out silently: failed seeds are counted in the line and named below the
table, unfinished runs are marked, and every formula is stated.
"""

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from jaxcl.statistics import Interval, interval

from .labels import measured_on
from .scores import Row, benchmark_of, has_own_tasks

UNFINISHED = "†"
NONE = "–"
FORMULAS = (
    ("A[i, j]", "accuracy on task j after training task i, of T tasks"),
    ("ACC", "mean_j A[T, j]"),
    ("AIA", "mean_i mean_{j≤i} A[i, j]"),
    ("BWT", "mean_{j<T} (A[T, j] − A[j, j])"),
    ("Forgetting", "mean_{j<T} (max_{i<T} A[i, j] − A[T, j])"),
    ("FWT", "mean_{j>1} (A[j−1, j] − b_j), b = accuracy at random initialisation"),
    ("±", "standard deviation over seeds (ddof = 1)"),
    (
        "95 % interval",
        "mean ± t(0.975, n − 1) · std / √n over the n seeds not failed, "
        "cut at the ends of the scale",
    ),
    (
        "p",
        "paired t-test of ACC against BP with the same network and data over shared "
        "seeds, two-sided, uncorrected",
    ),
)


def text_table(table: Sequence[Row], extra: Sequence[str] = ()) -> str:
    """The table as plain text: no colours, no wrapped lines."""
    stream = io.StringIO()
    console = Console(file=stream, width=10_000, color_system=None)
    console.print(_rich(table, extra, console))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def print_table(
    table: Sequence[Row], extra: Sequence[str] = (), console: Console | None = None
) -> None:
    """Prints the table: coloured and as wide as a terminal, as plain text elsewhere."""
    console = console or Console()
    if console.is_terminal:
        console.print(_rich(table, extra, console))
    else:
        console.file.write(text_table(table, extra))


def markdown_table(table: Sequence[Row], extra: Sequence[str] = ()) -> str:
    """The table in Markdown."""
    lines = [
        "| " + " | ".join(name for name, _ in COLUMNS) + " |",
        "| --- " + "| ---: " * (len(COLUMNS) - 1) + "|",
        *("| " + " | ".join(escape(c(r)) for _, c in COLUMNS) + " |" for r in table),
        "",
        *(f"- {escape(name)}: `{rule}`" for name, rule in FORMULAS),
        *(f"- {escape(note)}" for note in [*footnotes(table), *extra]),
    ]
    return f"**{escape(title(table))}**\n\n" + "\n".join(lines) + "\n"


def footnotes(table: Sequence[Row]) -> list[str]:
    """What a reader must know besides the formulas."""
    notes = [
        f"{row.label}, seed {seed}: {why} (in none of this line's statistics)."
        for row in table
        for seed, why in row.failed
    ]
    for row in table:
        done, tasks = row.result.tasks_done, len(row.result.task_names)
        if row.unfinished:
            over = f"figures are over the first {done}" if done else "no figures yet"
            notes.append(
                f"{UNFINISHED} {row.label}: unfinished, {done} of {tasks} tasks done; "
                f"{over}; not tested against BP."
            )
    notes += [
        f"{row.label}: not tested against BP, from which it differs in "
        f"{', '.join(row.apart)}."
        for row in table
        if row.apart
    ]
    results = [row.result for row in table if row.result.scenario == "class"]
    for tasks, own in sorted({(len(r.task_names), has_own_tasks(r)) for r in results}):
        again = ", if no class comes again" if own else ""
        notes.append(
            f"Class-incremental, {tasks} tasks: a classifier trained without replay or "
            f"projection is expected at about 1/T = {100 / tasks:.1f} %, the last task "
            f"alone{again}."
        )
    notes += [note for row in table for note in _told(row)]
    return notes + _of_runs(table)


def _told(row: Row) -> list[str]:
    """What a class-incremental network would score if it were told the task."""
    found = row.result.features.get("accuracy_told/outputs")
    done = row.result.tasks_done
    if found is None or not done or found.shape[1] <= done:
        return []
    values = found[:, done, :done].mean(-1)
    of = interval(np.where(row.finished_seeds, values, np.nan))
    return [
        f"{row.label}: if it is told the task (the same weights, the outputs of the "
        f"example's task alone) ACC is {_spread(of)} %."
    ]


def _of_runs(table: Sequence[Row]) -> list[str]:
    """The runs' own notes; a note that several runs have appears once."""
    who: dict[str, list[str]] = {}
    for row in table:
        for note in row.result.notes:
            who.setdefault(note, []).append(row.label)
    return [
        note if len(rows) == len(table) > 1 else f"{', '.join(rows)}: {note}"
        for note, rows in who.items()
    ]


def title(table: Sequence[Row]) -> str:
    """The table's title: names the benchmarks and the devices."""
    parts = dict.fromkeys(
        f"{r.config_name}, {r.scenario}-incremental, {len(r.task_names)} tasks"
        f"{', on validation data' if measured_on(r) == 'valid' else ''}"
        for r in (row.result for row in table)
    )
    devices = dict.fromkeys(row.result.device for row in table)
    return f"{'; '.join(parts)} (on {', '.join(devices)})"


def _mean_std(metric: str) -> Callable[[Row], str]:
    return lambda row: _spread(row.intervals[metric])


def _spread(i: Interval) -> str:
    return _percent(i.mean) + ("" if math.isnan(i.std) else f" ± {100 * i.std:.2f}")


def _range(low: str, high: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        i = row.intervals["acc"]
        a, b = getattr(i, low), getattr(i, high)
        return NONE if math.isnan(a) else f"[{_percent(a)}, {_percent(b)}]"

    return cell


def _p(row: Row) -> str:
    if row.test is None or math.isnan(row.test.p):
        return NONE
    return "< 0.001" if row.test.p < 0.001 else f"{row.test.p:.3f}"


def _percent(x: float) -> str:
    # Adding 0.0 turns the -0.0 of a rounded tiny loss into 0.0.
    return NONE if math.isnan(x) else f"{round(100 * x, 2) + 0.0:.2f}"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Method", lambda r: f"{r.label} {UNFINISHED}" if r.unfinished else r.label),
    ("ACC %", _mean_std("acc")),
    ("95 % interval", _range("low95", "high95")),
    ("[lowest, highest]", _range("minimum", "maximum")),
    ("AIA %", _mean_std("aia")),
    ("BWT %", _mean_std("bwt")),
    ("Forgetting %", _mean_std("fgt")),
    ("FWT %", _mean_std("fwt")),
    ("Failed", lambda r: f"{len(r.failed)}/{len(r.result.seeds)}"),
    ("p vs BP", _p),
    ("Seconds", lambda r: NONE if math.isnan(s := r.result.wall_s) else f"{s:.0f}"),
)

HALVES = ((0, 1, 2, 3, 8, 9), (0, 4, 5, 6, 7, 10))


def _rich(rows: Sequence[Row], extra: Sequence[str], console: Console) -> Group:
    parts = [_grid(rows, range(len(COLUMNS)))]
    unbounded = console.options.update(max_width=10_000)
    if console.measure(parts[0], options=unbounded).maximum > console.width:
        # Two readable tables are better than one whose numbers are cut off.
        parts = [_grid(rows, columns) for columns in HALVES]
    width = max(len(name) for name, _ in FORMULAS)
    beneath = [f"{name:<{width}}  {rule}" for name, rule in FORMULAS]
    notes = [*footnotes(rows), *extra]
    return Group(
        Text(title(rows), style="bold"),
        *parts,
        Text("\n".join(beneath), style="dim"),
        *([Text("\n" + "\n".join(notes))] if notes else []),
    )


def _grid(rows: Sequence[Row], columns: Iterable[int]) -> Table:
    shown = [COLUMNS[k] for k in columns]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for k, (name, _) in enumerate(shown):
        table.add_column(Text(name), justify="right" if k else "left")
    for k, row in enumerate(rows):
        if k and benchmark_of(rows[k - 1].result) != benchmark_of(row.result):
            table.add_section()
        style = "red" if row.failed else "yellow" if row.unfinished else ""
        table.add_row(*(Text(cell(row), style=style) for _, cell in shown))
    return table


def escape(text: str) -> str:
    """A text with Markdown's special characters escaped."""
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", text)


def write_csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table as CSV: NaN is empty; text that a spreadsheet would run gets a quote."""
    return "".join(csv_pieces(header, lines))


def csv_pieces(
    header: Sequence[str], lines: Iterable[Sequence[object]]
) -> Iterator[str]:
    """The text of `write_csv` in pieces, for tables too long to be held in memory."""
    cells = ([_csv_cell(cell) for cell in line] for line in lines)
    rows = itertools.chain([header], cells)
    while chunk := list(itertools.islice(rows, 10_000)):
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(chunk)
        yield stream.getvalue()


def _csv_cell(cell: object) -> object:
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")):
        return f"'{cell}"
    return "" if isinstance(cell, float) and math.isnan(cell) else cell
