r"""Rebuilds tables and figures from the folders of finished and unfinished runs alone.

    python -m experiments.report DIR... [--out=FOLDER]

Each DIR is a run's folder (it holds `result.json`) or a comparison's (its sub-folders
are runs). Into the output folder, by default the first DIR, go `table.txt`, `table.md`,
`table.csv`, `seeds.csv`, `bars.png`, `tasks.png`, `matrix.png` and, where a method
reports the space it takes, `space.png`; where a run has measured features,
`features.txt`, `features.csv`, `rank.png`, `cka.png` and `probes.png`. The table is
printed too.

    python -m experiments.report --page=experiments/results

writes the README.md of a whole folder of results, claims among them, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from .reporting import results_page
from .reporting.build import build, console_table
from .runs.load import EXPECTED, find


def main(argv: Sequence[str]) -> int:
    folders = [Path(arg) for arg in argv[1:]]
    try:
        if "page" in flags.FLAGS and flags.FLAGS.page:
            root = Path(flags.FLAGS.page)
            (root / "README.md").write_text(results_page.page(root), encoding="utf-8")
            return 0
        if not folders:
            raise FileNotFoundError(f"no folder given; expected {EXPECTED}")
        found, pending = find(folders)
        out = Path(flags.FLAGS.out) if flags.FLAGS.out else folders[0]
        build(found, out, pending)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    console_table(found, pending)
    print(f"\nTables and figures are in {out}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Output folder; by default the first DIR.")
    flags.DEFINE_string("page", None, "Folder of results that gets its README.md.")
    app.run(main)
