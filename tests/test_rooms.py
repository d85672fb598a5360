"""Rooms of experiments/: no command imports another, and reporting runs nothing."""

import ast
from pathlib import Path

import pytest

import experiments
import jaxcl

ROOT = Path(experiments.__file__).parent
# A room may import from itself and from the rooms before it.
ROOMS = (
    "config",
    "runs",
    "reporting",
    "launch_help",
    "inert",
    "launch",
    "launch_rows",
    "claims",
    "command",
)
# Of `runs`, reporting may import only what is written in a run's folder.
LEFT = {"runs.results", "runs.measured"}


def _name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


MODULES = {_name(file): file for file in ROOT.rglob("*.py") if file.stem != "__init__"}


def _room(module: str) -> str:
    first = module.split(".")[0]
    return first if first in ROOMS else "command"


def _imports(module: str, source: str) -> set[str]:
    """Modules of experiments/ that another one imports, anywhere in its file."""
    package = module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            origin = ["experiments"] if node.level else []
            base = ".".join([*origin, *up, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            # In the wheel the commands are part of the library.
            name = name.replace("jaxcl.experiments.", "experiments.", 1)
            if name.startswith("experiments."):
                inside = name.removeprefix("experiments.")
                found |= {inside} & MODULES.keys() - {module}
    return found


def _faults(module: str, source: str) -> list[str]:
    room = _room(module)
    found = []
    for other in sorted(_imports(module, source)):
        if room == "command":
            wrong = _room(other) == "command"
        elif room == "reporting":
            wrong = _room(other) != "reporting" and other not in LEFT
        else:
            wrong = ROOMS.index(_room(other)) > ROOMS.index(room)
        if wrong:
            found.append(f"{module} imports {other}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    assert not _faults(module, MODULES[module].read_text())


@pytest.mark.parametrize(
    "module, line",
    [
        ("compare", "from .run import main"),
        ("compare", "from . import run"),
        ("sweep", "import experiments.run"),
        ("sweep", "from jaxcl.experiments.compare import main"),
        ("reporting.tables", "from ..runs.execute import execute"),
        ("reporting.tables", "from ..runs import execute"),
        ("reporting.tables", "from .. import launch"),
        ("runs.execute", "from ..reporting import tables"),
        ("runs.execute", "from experiments import launch"),
        ("config", "from .runs import results"),
    ],
)
def test_a_wrong_import_is_seen(module, line):
    assert _faults(module, f"def f():\n    {line}\n")


def test_no_file_is_long():
    library = Path(jaxcl.__file__).parent
    for file in (*MODULES.values(), *library.rglob("*.py")):
        lines = len(file.read_text().splitlines())
        assert lines <= 250, f"{file}: {lines} lines"
