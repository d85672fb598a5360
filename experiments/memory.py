r"""How much memory a run takes, over seeds and tasks, and what for.

    python -m experiments.memory --config=permuted_mnist [--strategies=bp,ewc,gpm,hat]
        [--seeds=1,5,20] [--tasks=10,50,200] [--images=100] [--workdir=DIR]

Each combination is `experiments.run` in a process of its own, whose largest resident
memory the kernel tells at its end: one epoch per task on few images, since memory does
not depend on how long a run trains. Beside it stands what is known beforehand: the
images, each task's index lists and permutations, and what training carries (weights,
the best ones where they are kept, the optimizer's and the strategy's states), all seeds
together. A process that only reads the config shows what the libraries take. What is
left over are compiled programs, the compiler, and copies: a checkpoint is written from
one of the state.

Fields on the command line apply to every run. The folder (by default results/memory)
gets `memory.json`, line by line as runs end, so that the same command goes on where it
was stopped, and a page, `README.md`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from itertools import product
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxcl import files
from jaxcl.strategies import label

from . import launch
from .config import set_field
from .launch_rows import define_rows, row_configs
from .runs import machine
from .runs.arguments import counts, for_rows, split
from .runs.foreign import require_page
from .runs.plain_json import read_json
from .runs.resident import known, peak, small

MIB = 2**20


def page(about: dict[str, Any]) -> str:
    """The page, from `memory.json`."""
    rows = list(dict.fromkeys(line["row"] for line in about["lines"]))
    lines = sorted(
        about["lines"], key=lambda x: (rows.index(x["row"]), x["tasks"], x["seeds"])
    )
    text = [
        "# Peak memory",
        "",
        f"Written by `jaxcl memory` ({about['config']}, {about['images']} images per "
        f"task, {about['device']}). MiB; all seeds together.",
        f"Libraries alone, with the config read: {_mib(about['libraries'])}. *Rest*: "
        "the peak less libraries and what is known",
        "beforehand; compiled programs, the compiler, copies.",
        "",
        "| method | seeds | tasks | peak | images | tasks' lists | state | rest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        parts = [line[k] for k in ("images", "lists", "state")]
        rest = line["peak"] - sum(parts) - about["libraries"]
        sizes = " | ".join(_mib(n) for n in (line["peak"], *parts, rest))
        text.append(
            f"| {label(line['row'])} | {line['seeds']} | {line['tasks']} | {sizes} |"
        )
    return "\n".join([*text, ""])


def _mib(number: int) -> str:
    return f"{number / MIB:,.1f}" if number < 10 * MIB else f"{number / MIB:,.0f}"


def main(argv: Sequence[str]) -> int:
    workdir = launch.folder(_WORKDIR.value, "memory")
    seeds, numbers_of_tasks = (counts(f.name, f.value) for f in (_SEEDS, _TASKS))
    rows = _ROWS.value
    configs = dict(zip(rows, row_configs(rows), strict=True))
    file, argument = launch.config_file()
    named, variants = split(argument)
    given = config_flags.get_override_values(flags.FLAGS["config"])
    alone = for_rows(flags.FLAGS["for"].value, rows)
    model = [f"--model={field}" for field in launch.model_fields()]
    about: dict[str, Any] = {
        "config": f"{file.stem}{':' if variants else ''}{','.join(variants)}",
        "images": _IMAGES.value,
        "given": {key: repr(value) for key, value in given.items()},
        "model": model,
        "for": flags.FLAGS["for"].value,
        "device": machine.device(),
        "versions": dict(machine.versions()),
    }
    record = workdir / "memory.json"
    before = read_json(record) if record.exists() else {}
    require_page(workdir / "README.md", "# Peak memory")
    workdir.mkdir(parents=True, exist_ok=True)
    if before and {key: before.get(key, []) for key in about} != about:
        raise machine.UsageError(f"{record} has another command's or commit's figures")
    about["libraries"] = before.get("libraries")
    about["lines"] = lines = before.get("lines", [])

    def arguments(row: str, fields: dict[str, Any]) -> list[str]:
        of_row = {
            key: value
            for key, value in given.items()
            if row == named or not key.startswith("method.")
        }
        of_row |= {f: value for place, f, value in alone if rows[place] == row}
        return [
            f"--config={file}:{','.join([row, *variants])}",
            *(f"--config.{key}={value}" for key, value in (of_row | fields).items()),
            *model,
        ]

    if not about["libraries"]:
        about["libraries"] = peak([*arguments(rows[0], {}), "--print_config"])
    for row, n, tasks in product(rows, seeds, numbers_of_tasks):
        if any((x["row"], x["seeds"], x["tasks"]) == (row, n, tasks) for x in lines):
            continue
        fields = small(n, tasks, _IMAGES.value)
        for key, value in fields.items():
            set_field(configs[row], key, value)
        sizes = known(configs[row])
        with tempfile.TemporaryDirectory() as folder:
            most = peak([*arguments(row, fields), f"--workdir={folder}"])
        line = {"row": row, "seeds": n, "tasks": tasks, "peak": most}
        lines.append(line | sizes)
        files.write_whole(record, json.dumps(about, indent=1) + "\n")
        files.write_whole(workdir / "README.md", page(about))
        print(f"{label(row)}, {n} seeds, {tasks} tasks: {_mib(most)} MiB", flush=True)
    print(f"page: {workdir}")
    return 0


if __name__ == "__main__":
    launch.define_config("variant")
    _ROWS = define_rows(["bp", "ewc", "gpm", "hat"], "Rows.")
    _SEEDS = launch.define_list("seeds", ["1", "5", "20"], "How many.")
    _TASKS = launch.define_list("tasks", ["10", "50", "200"], "How many.")
    _IMAGES = flags.DEFINE_integer("images", 100, "Per task.", lower_bound=10)
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/memory.")
    launch.run(main)
