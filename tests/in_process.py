"""Runs commands in the tests' own process, and says how a refusal looks."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

from absl import flags
from absl.testing import flagsaver

ROOT = Path(__file__).parents[1]
RESULT = {
    "config_name": "digits",
    "row": "bp",
    "scenario": "task",
    "seeds": [0],
    "status": ["ok"],
    "matrix": [[[0.5]]],
    "baseline": [[0.5]],
    "task_names": ["one"],
    "tasks_done": 1,
    "steps": 3,
    "wall_s": 1.0,
    "device": "cpu",
    "versions": {},
}


def run(monkeypatch, name, *arguments):
    """Exit status, output and errors of ``python -m experiments.name arguments``."""
    out, err = io.StringIO(), io.StringIO()
    known = set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", [f"experiments.{name}", *arguments])
    saved = flagsaver.save_flag_values()
    sys.modules.pop("config_config", None)  # the last command's config file
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            inside = ".__main__" if name == "claims" else ""  # a package
            runpy.run_module(
                f"experiments.{name}{inside}", run_name="__main__", alter_sys=True
            )
        except SystemExit as end:
            status = end.code
        finally:
            for flag in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, flag)
            flagsaver.restore_flag_values(saved)
    return status or 0, out.getvalue(), err.getvalue()


def refused(ended, *said):
    """Asserts that `run` ended in one line that holds these words, and no output."""
    status, out, err = ended
    lines = err.strip().splitlines()
    assert status == 2 and len(lines) == 1, err[-400:] or out[-100:]
    assert lines[0].startswith("error: ") and not out
    for words in said:
        assert words in lines[0], lines[0]
