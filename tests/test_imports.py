"""Imports run downward; strategies know no protocol, no data and not each other."""

import ast
from pathlib import Path

import jaxcl

ROOT = Path(jaxcl.__file__).parent
# A module may import from those before it.
ORDER = [
    "checks",
    "types",
    "sampling",
    "linalg",
    "gates",
    "memory",
    "metrics",
    "convolution",
    "layers",
    "models",
    "capture",
    "inspection",
    "units",
    "heads",
    "compose",
    "projection",
    "data.cache",
    "data.tiny_imagenet",
    "data.sources",
    "data.stream",
    "data.streams",
    "transforms",
    "losses",
    "strategies",
    "plan",
    "lane",
    "evaluation",
    "training",
    "checkpoints",
    "lanes",
    "problem",
    "protocol",
]


def _imports(file: Path) -> set[str]:
    """Modules of this package that a file imports, at any depth of it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {name.removeprefix("jaxcl.") for name in found if name.startswith("jaxcl.")}


def _rank(name: str) -> int | None:
    for i, module in enumerate(ORDER):
        if name == module or name.startswith(f"{module}."):
            return i
    return None


def _modules():
    for file in sorted(ROOT.rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if name.removesuffix("__init__").rstrip(".") not in ("", "data"):
            yield name.removesuffix(".__init__"), file


def test_imports_run_downward():
    for name, file in _modules():
        rank = _rank(name)
        assert rank is not None, f"{name} has no place in the order"
        for other in _imports(file):
            if _rank(other) is not None and not other.startswith("strategies"):
                assert _rank(other) <= rank, f"{name} imports {other}"


def test_strategies_import_neither_protocol_nor_data_nor_each_other():
    for name, file in _modules():
        if name.startswith("strategies."):
            for other in _imports(file):
                top = other.split(".")[0]
                assert top not in (
                    "protocol",
                    "problem",
                    "plan",
                    "lane",
                    "evaluation",
                    "training",
                    "data",
                    "lanes",
                ), name
                assert top != "strategies", f"{name} imports {other}"


def test_flax_is_imported_in_few_places_only():
    users = {
        name
        for name, file in _modules()
        if "flax" in file.read_text() and "import flax" in file.read_text()
    }
    models = {"layers", "models", "capture", "inspection"}
    assert users <= models | {"problem", "projection"}, users
