r"""Rebuilds tables and figures from the folders of runs alone, finished or not.

    python -m experiments.report DIR... [--out=FOLDER]

Each DIR is the folder of a run (it holds `result.json`) or of a comparison (its
sub-folders are runs). Finished runs that differ in their seeds alone are one row. The
output folder, by default the first DIR, gets `table.txt`, `table.md`, `table.tex`,
`table.csv`, `seeds.csv`, `results.csv` (every accuracy, in long form), and the figures
`bars`, `tasks` and `matrix`. If a method reports the space it takes, it gets the figure
`space`, and `capacity` if it has gates. If a run has measured features, it gets
`features.txt`, `features.csv`, `rank`, `cka` and `probes`. Figures are PNG and SVG. The
table is printed too.

    python -m experiments.report --page=experiments/results

writes only the README.md of a whole folder of results, including the claims.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from jaxcl import files

from . import launch
from .reporting import results_page
from .reporting.build import build, console_table
from .runs import machine, more_seeds
from .runs.foreign import require_own, require_page
from .runs.load import EXPECTED, find


def main(argv: Sequence[str]) -> int:
    folders = [launch.folder(arg) for arg in argv[1:]]
    if "page" in flags.FLAGS and flags.FLAGS.page is not None:
        if folders or flags.FLAGS.out is not None:
            raise machine.UsageError(
                "--page writes the page of one folder of results, and no table: leave "
                "out the folders and --out"
            )
        root = launch.folder(flags.FLAGS.page)
        page = results_page.page(root)
        require_page(root / "README.md", page.partition("\n")[0])
        files.write_whole(root / "README.md", page)
        print(f"page: {root / 'README.md'}")
        return 0
    if not folders:
        raise FileNotFoundError(f"no folder given; expected {EXPECTED}")
    found, pending = find(folders)
    out = folders[0] if flags.FLAGS.out is None else launch.folder(flags.FLAGS.out)
    require_own(out)
    found = more_seeds.joined(found)
    build(found, out, pending)
    console_table(found, pending)
    print(f"\nTables and figures are in {out}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Output folder; by default the first DIR.")
    flags.DEFINE_string("page", None, "Folder of results that gets its README.md.")
    launch.run(main, words=True)
