"""Imports go downward only: each folder and each top-level file has a floor."""

import ast
from pathlib import Path

import jaxcl

ROOT = Path(jaxcl.__file__).parent
# The import rules: a room may import from the rooms on earlier lines and, if it is a
# folder, from itself. Rooms on the same line may not import each other.
FLOORS = [
    ("_interrupts", "checks", "files", "schema"),
    ("kinds", "types"),
    ("contract", "inputs", "ops", "metrics", "statistics"),
    ("linearity", "losses", "transforms", "nn", "heads", "compose", "features"),
    ("assembly",),
    ("hooks", "objective", "setup"),
    ("strategies", "data", "tasks", "predicting"),
    ("training",),
    ("fields",),
    ("benchmark",),
    ("testing",),
    ("opening",),
]
# The same inside `training`: code of the training may not import code of the run.
TRAINING = [
    ("plan", "state", "seeds", "describe", "measures"),
    ("evaluation", "schedule", "selection"),
    ("epoch",),
    ("trainer",),
    ("room",),
    ("problem",),
    ("programs", "run_state", "observation", "fingerprint", "saved"),
    ("answers", "probing"),
    ("instruments", "checkpoints", "events"),
    ("protocol",),
]


def _imported(source: str) -> set[tuple[str, ...]]:
    """Paths inside this package that a source text imports, at any depth of it.

    ``from jaxcl.a import b`` gives ("a", "b"): b may be a module or not.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    paths = (tuple(name.split(".")) for name in names)
    return {path[1:] for path in paths if path[0] == "jaxcl" and len(path) > 1}


def _floor(floors, room: str) -> int:
    for i, rooms in enumerate(floors):
        if room in rooms:
            return i
    raise AssertionError(f"{room!r} has no floor")


def _fault(importer: tuple[str, ...], imported: tuple[str, ...]) -> str | None:
    """Why a module may not import another, or None if it may."""
    mine, other = importer[0], imported[0]
    if mine == other:
        if mine == "training" and len(imported) > 1 and importer[1:] != imported[1:2]:
            below, above = _floor(TRAINING, imported[1]), _floor(TRAINING, importer[1])
            if below >= above:
                return f"{importer} imports {imported}"
        if mine == "strategies" and not imported[1].startswith("_"):
            return f"the strategy {importer} imports the strategy {imported}"
        return None
    if _floor(FLOORS, other) >= _floor(FLOORS, mine):
        return f"{importer} imports {imported}"
    return None


def _modules():
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT).with_suffix("").parts
        if path[-1] != "__init__":
            yield path, file


def _faults():
    for path, file in _modules():
        for imported in _imported(file.read_text()):
            if imported[0][0].isupper() or imported[0].startswith("__"):
                continue
            yield _fault(path, imported)


def test_imports_run_downward():
    assert not [fault for fault in _faults() if fault]


def test_a_lower_room_that_imports_a_higher_one_is_found():
    source = "from jaxcl.strategies import ewc\nimport jaxcl.training.trainer"
    found = [_fault(("ops", "linalg"), imported) for imported in _imported(source)]
    assert len(found) == 2 and all(found)
    assert _fault(("strategies", "hat"), ("strategies", "ewc"))
    assert _fault(("data", "stream"), ("strategies", "ewc"))
    assert _fault(("training", "evaluation"), ("training", "protocol"))
    assert not _fault(("strategies", "hat"), ("strategies", "_units"))
    assert not _fault(("training", "trainer"), ("ops", "linalg"))


def test_flax_is_imported_in_nn_only():
    users = {
        path
        for path, file in _modules()
        if "import flax" in file.read_text() or "from flax" in file.read_text()
    }
    assert {path[0] for path in users} == {"nn"}, users


def test_orbax_is_imported_in_one_module():
    users = {path for path, file in _modules() if "import orbax" in file.read_text()}
    assert users == {("training", "checkpoints")}
