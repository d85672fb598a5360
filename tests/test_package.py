"""The package: what it needs, what it contains, and its commands under both names."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxcl
from experiments.__main__ import COMMANDS, EXTRA

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]


def python(*arguments, path, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_library_needs_only_what_it_declares(tmp_path):
    """`import jaxcl` works without the commands' packages.

    Flax and SciPy look for some of these packages, so they are imported first.
    """
    blocked = {package.split(".")[0] for package in EXTRA}
    blocked |= {"sklearn", "tensorflow_datasets", "requests", "chex", "torch"}
    code, out, err = python(
        "-c",
        "import sys, flax.linen, optax, scipy.stats\n"
        f"for name in {sorted(blocked)}: sys.modules[name] = None\n"
        "import jaxcl\n"
        "print(jaxcl.__version__)\n",
        path=ROOT,
        cwd=tmp_path,
    )
    assert code == 0, err
    assert out.strip() == jaxcl.__version__


def test_all_that_is_installed_lies_under_jaxcl():
    packages, folders = (SETUPTOOLS[k] for k in ("packages", "package-dir"))
    assert all(name.split(".")[0] == "jaxcl" for name in packages)
    assert not [name for name in packages if "results" in name or "__" in name]
    installed = set()
    for name in packages:
        home = max((p for p in folders if name.startswith(p)), key=len, default="")
        below = name.removeprefix(home).strip(".").replace(".", "/")
        installed |= set((ROOT / folders.get(home, "") / below).glob("*.py"))
    brought = ("jaxcl", "experiments", "configs")
    assert installed == {file for top in brought for file in (ROOT / top).rglob("*.py")}


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder that contains only `jaxcl`, laid out as in the wheel."""
    folder = tmp_path_factory.mktemp("site-packages")
    ignore = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "jaxcl", folder / "jaxcl", ignore=ignore)
    for top in ("experiments", "configs"):
        shutil.copytree(ROOT / top, folder / "jaxcl" / top, ignore=ignore)
    return folder


def test_the_installed_command_runs_a_shipped_config_from_any_folder(
    installed, tmp_path
):
    short = ["--config.data.num_tasks=2", "--config.data.train_per_task=30"]
    code, out, err = python(
        *["-m", "jaxcl.experiments", "compare", "--config=digits"],
        *["--strategies=bp,gpm", "--config.seeds=(0,)", "--config.train.epochs=1"],
        *short,
        path=installed,
        cwd=tmp_path,
    )
    assert code == 0, err
    assert "BP" in out and "GPM" in out
    assert (tmp_path / "results" / "digits" / "gpm" / "result.json").is_file()
    code, out, err = python(
        *["-m", "jaxcl.experiments", "report", "results/digits"],
        path=installed,
        cwd=tmp_path,
    )
    assert code == 0 and "GPM" in out, err


def test_every_shipped_config_loads_under_the_installed_name(installed, tmp_path):
    code, out, err = python(
        "-c",
        "import pathlib, jaxcl.benchmark\n"
        "from jaxcl.experiments.runs import arguments\n"
        "for file in sorted(arguments.CONFIGS.glob('*.py')):\n"
        "    path = pathlib.Path(arguments.shipped(file.stem))\n"
        "    print(jaxcl.benchmark.load(path).get_config('gpm').name)\n",
        path=installed,
        cwd=tmp_path,
    )
    assert code == 0, err
    assert len(out.split()) == len(list((ROOT / "configs").glob("*.py")))


@pytest.mark.parametrize(
    "argument, code, told",
    [("--help", 0, "compare"), ("nosuch", 2, "unknown command 'nosuch'; known: run")],
)
def test_the_command_of_commands(tmp_path, argument, code, told):
    got, out, err = python("-m", "experiments", argument, path=ROOT, cwd=tmp_path)
    assert got == code and told in out + err


def test_every_command_is_listed():
    others = {"__init__", "__main__", "config", "launch", "launch_help"}
    others |= {"launch_rows", "inert"}
    files = {file.stem for file in (ROOT / "experiments").glob("*.py")}
    rooms = {file.parent.name for file in (ROOT / "experiments").glob("*/__main__.py")}
    assert set(COMMANDS) == (files - others) | rooms


def test_without_the_extra_the_command_says_what_to_install(installed, tmp_path):
    code, out, err = python(
        "-c",
        "import sys\n"
        "sys.modules['ml_collections'] = None\n"
        "sys.argv = ['jaxcl', 'run']\n"
        "from jaxcl.experiments.__main__ import main\n"
        "sys.exit(main())\n",
        path=installed,
        cwd=tmp_path,
    )
    assert code == 2 and 'pip install "jaxcl[experiments]"' in err
    assert len(err.splitlines()) == 1


def test_the_extra_holds_what_the_command_asks_for():
    extra = " ".join(PROJECT["optional-dependencies"]["experiments"])
    names = {"absl": "absl-py", "PIL": "pillow", "orbax.checkpoint": "orbax-checkpoint"}
    for package in EXTRA:
        assert names.get(package, package.replace("_", "-")) in extra
    assert "jaxcl[experiments]" in PROJECT["optional-dependencies"]["test"]
