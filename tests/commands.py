"""Runs commands as `python -m` does, without importing JAX again for each of them.

A server process imports everything that commands import, but starts nothing; it forks
for each command. Tests of kills and of the installed command use separate processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Server:
    """A process that forks for each command."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        module: str,
        *arguments: Any,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, str, str]:
        """Exit status, output and errors of ``python -m module arguments``."""
        assert self.process.stdin and self.process.stdout
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            job = [module, list(map(str, arguments)), str(cwd), dict(env or {})]
            print(json.dumps([*job, str(out), str(err)]), file=self.process.stdin)
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            return status, out.read_text(), err.read_text()

    def close(self) -> None:
        self.process.communicate()


def _serve() -> None:
    """Answers each line of standard input with a command's exit status."""
    _import_all()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _become(*job)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


def _import_all() -> None:
    """Imports what commands import, but no module that defines a command's flags."""
    import experiments.claims.table
    import experiments.config
    import experiments.reporting.build
    import experiments.runs.execute  # noqa: F401


def _become(
    module: str, arguments: list[str], cwd: str, env: dict, out: str, err: str
) -> None:
    """Runs a command in this process and ends it."""
    import runpy
    import traceback

    for number, file in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    status = 1
    try:
        os.chdir(cwd)
        os.environ.update(env)
        sys.path[:0] = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep)]
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stopped:
        status = _status(stopped.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status(code: Any) -> int:
    """The exit status that the interpreter gives for `sys.exit`'s argument."""
    if isinstance(code, int) or code is None:
        return code or 0
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    _serve()
