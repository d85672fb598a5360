"""``jaxcl COMMAND ...`` runs a command of this folder, from any folder."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys

COMMANDS = {
    "run": "one method on one benchmark",
    "compare": "several methods on one benchmark: a table and figures",
    "sweep": "chooses settings on validation data",
    "report": "tables and figures again, from the folders of runs alone",
    "bench": "what a training step costs",
    "roofline": "what a step costs on paper, here and on accelerators",
    "memory": "how much memory runs take, over seeds and tasks, and what for",
    "claims": "shows or refutes claims about continual learning",
    "heads": "heads in closed form on final features: what forgets?",
    "readings": "what the readings of the orthogonal loss do to features",
    "attention": "where two networks look after each task, and how far they agree",
    "plane": "two tasks' accuracy over a plane of weights, and methods' paths in it",
}
# Packages that the commands need and the library does not.
EXTRA = (
    "absl",
    "matplotlib",
    "ml_collections",
    "orbax.checkpoint",
    "PIL",
    "rich",
    "threadpoolctl",
)


def main() -> int:
    """Runs the command that the first argument names, with the other arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "-help", "--help"):
        print("usage: jaxcl COMMAND --help, or with the command's arguments\n")
        for command, what in COMMANDS.items():
            print(f"  {command:<12}{what}")
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: unknown command {name!r}; known: {known}", file=sys.stderr)
        return 2
    missing = [package for package in EXTRA if not _installed(package)]
    if missing:
        print(
            f"error: the commands need {', '.join(missing)}: "
            'pip install "jaxcl[experiments]"',
            file=sys.stderr,
        )
        return 2
    sys.argv = [f"jaxcl {name}", *sys.argv[2:]]
    # A method named by its import path may lie in the current folder: `python -m` looks
    # there too.
    sys.path.append(os.getcwd())
    runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
    return 0


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


if __name__ == "__main__":
    sys.exit(main())
