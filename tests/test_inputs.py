"""Every wrong input gives one line that names value and rule; nothing is written."""

import json
import os
import subprocess
import sys

import pytest

from tests import wrong_inputs
from tests.in_process import RESULT, ROOT, refused

BASE = "from jaxcl.benchmark import base, finish, variant\nfrom configs import digits\n"
CONFIGS = {
    "syntax": "def get_config(:\n",
    "raises": "1 / 0\n",
    "raises_later": "def get_config(argument=''):\n    return 1 / 0\n",
    "imports": "import nosuchmodule\n",
    "nothing": "x = 1\n",
    "none": "def get_config(argument=''):\n    return None\n",
    "dict": "def get_config(argument=''):\n    return {'name': 'x'}\n",
    "partial": "from ml_collections import ConfigDict\n"
    "def get_config(argument=''):\n    return ConfigDict({'name': 'x', 'data': {}})\n",
    **{
        name: f"{BASE}def get_config(argument=''):\n"
        f"    config = digits.get_config(argument)\n    {line}\n    return config\n"
        + more
        for name, line, more in (
            ("extra", "config.colour = 'red'", ""),
            ("deep", "config.data.colour = 'red'", ""),
            ("optimizer", "del config.optimizer.clip", ""),
            ("method", "del config.method; config.method = 3", ""),
            ("mine", "pass", ""),
            ("twice", "config.rows = ('bp', 'bp')", ""),
            ("no_rows", "config.rows = ()", ""),
            ("sweep_none", "pass", "def sweep():\n    return None\n"),
            ("sweep_empty", "pass", "def sweep():\n    return {}\n"),
            ("sweep_text", "pass", "def sweep():\n    return 'ewc'\n"),
            ("sweep_row", "pass", "def sweep():\n    return {'ewc': (1, 2)}\n"),
            ("sweep_raises", "pass", "def sweep():\n    return 1 / 0\n"),
            (
                *("sweep_field", "pass"),
                "def sweep():\n    return {'ewc': {'colour': (1, 2)}}\n",
            ),
            (
                *("sweep_value", "pass"),
                "def sweep():\n    return {'ewc': {'method.strength': ()}}\n",
            ),
        )
    },
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with the files that the table's command lines name."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "file").write_text("")
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(text)
    for name, content in (
        ("listed", b"[]"),
        ("torn", b'{"name": "di'),
        ("folders", b""),
    ):
        (folder / name).mkdir()
        file = folder / name / "config.json"
        file.write_bytes(content) if content else file.mkdir()
    for name, content in (
        ("good", json.dumps(RESULT).encode()),
        ("result_list", b"[]"),
        ("result_torn", b'{"row": '),
        ("result_binary", b"\xff\x00"),
    ):
        (folder / name).mkdir()
        (folder / name / "result.json").write_bytes(content)
    return folder


def tree(folder):
    return {p: p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.mark.parametrize("wrong", wrong_inputs.FIELDS, ids=str)
def test_a_wrong_field(command, tmp_path, wrong):
    row, field, value, rule = wrong
    argument = f"--config.{field}={value}"
    workdir = tmp_path / "w"
    ended = command("run", f"--config=digits:{row}", argument, f"--workdir={workdir}")
    shown = {"0.0": "0", "-1e-9": "-1e-09"}.get(value, value)
    name = field.rpartition(".")[2].removesuffix("name")
    # A size that does not fit may depend on several fields; a data set is a name.
    named = "" if rule == "GB" or field == "data.dataset" else name
    refused(ended, named, shown, rule)
    assert not workdir.exists()


@pytest.mark.parametrize("name, arguments, said", wrong_inputs.COMMANDS)
def test_a_wrong_command_line(command, given, name, arguments, said):
    before = tree(given)
    arguments = [argument.format(d=given) for argument in arguments]
    refused(command(name, *arguments), said.format(d=given))
    assert tree(given) == before


@pytest.mark.parametrize("field, value, said", wrong_inputs.RESULTS)
def test_a_wrong_result(command, tmp_path, field, value, said):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {field: value}))
    before = tree(tmp_path)
    refused(command("report", str(tmp_path)), field, said)
    assert tree(tmp_path) == before


def test_the_table_is_long_enough():
    inputs = (wrong_inputs.FIELDS, wrong_inputs.COMMANDS, wrong_inputs.RESULTS)
    assert sum(map(len, inputs)) >= 300


def test_twenty_as_processes(given):
    """Two at a time; they print what the same input prints in this process."""
    fields = wrong_inputs.FIELDS[:: len(wrong_inputs.FIELDS) // 10][:10]
    lines = [
        ["run", f"--config=digits:{w.row}", f"--config.{w.field}={w.value}"]
        + [f"--workdir={given}/w"]
        for w in fields
    ]
    lines += [[name, *given_] for name, given_, _ in wrong_inputs.COMMANDS[::8]][:10]
    assert len(lines) == 20
    before = tree(given)

    def start(line):
        name, *arguments = [word.format(d=given) for word in line]
        return subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    for pair in zip(lines[::2], lines[1::2], strict=True):
        for process in [start(line) for line in pair]:
            out, err = process.communicate(timeout=300)
            refused((process.returncode, out, err))
    assert tree(given) == before
