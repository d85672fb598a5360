"""What every command of this folder does before and around its work."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxcl.data.cache import DataError, cache_root
from jaxcl.training.checkpoints import CheckpointError

from . import config as configs
from .runs.machine import UsageError, cores

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, to run on several hosts."
)
_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many, with --coordinator."
)
_PROCESS = flags.DEFINE_integer("process_id", None, "This one, with --coordinator.")
_CLUSTER = flags.DEFINE_bool(
    "cluster", False, "Several hosts whose cluster tells JAX who they are."
)
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Parts to split a CPU into; by default one a core."
)


class _OptionalInt(flags.IntegerParser):
    """Takes "None" too, for the fields that may be; `config.problem` checks which."""

    def parse(self, argument):
        return None if argument == "None" else super().parse(argument)


class _OptionalFloat(flags.FloatParser):
    def parse(self, argument):
        return None if argument == "None" else super().parse(argument)


config_flags.register_flag_parser_for_type(int, _OptionalInt())
config_flags.register_flag_parser_for_type(float, _OptionalFloat())


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses flags, prepares JAX, runs `main`; a user's mistake is one line, exit 2."""
    try:
        app.run(_guarded(main), flags_parser=_parse)
    except UsageError as error:
        fail(error)


def fail(error: BaseException) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            # A file that cannot be read is an error only once a field is looked at.
            str(flags.FLAGS["config"].value.name)
    except (AttributeError, KeyError) as e:
        fail(UsageError(_unknown_field(argv) or e))
    except (flags.Error, OSError, TypeError, ValueError) as e:
        # ml_collections raises any of these, some with a traceback in the message:
        # its last line is what somebody raised, without the exception's name.
        last = str(e).strip().splitlines()[-1]
        fail(UsageError(re.sub(r"^\s*(\w*Error: )?", "", last)))
    if len(rest) > 1 and "config" in flags.FLAGS:
        fail(UsageError(f"unexpected argument {rest[1]!r}; settings are --config.x=y"))
    return rest


def _unknown_field(argv: list[str]) -> str | None:
    """Names the first --config.x.y that the config does not have, and what it has."""
    given = dict(a.lstrip("-").partition("=")[::2] for a in argv[1:])
    file, _, argument = given.get("config", "").partition(":")
    for key in given:
        if not file or not key.startswith("config."):
            continue
        at: object = load(Path(file)).get_config(argument)
        for i, part in enumerate(key.split(".")[1:], start=2):
            if not isinstance(at, ConfigDict) or part not in at:
                known = ", ".join(sorted(at)) if isinstance(at, ConfigDict) else "none"
                where = ".".join(key.split(".")[: i - 1])
                return f"--{key}: {where} has no field {part!r}; it has: {known}"
            at = at[part]
    return None


def load(file: Path) -> ModuleType:
    """A config file as a module, with its ``get_config`` and perhaps a ``sweep``."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader  # ml_collections has loaded it already
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_file() -> tuple[Path, str]:
    """The file that --config names, and the argument after its colon."""
    named = config_flags.get_config_filename(flags.FLAGS["config"])
    file, _, argument = named.partition(":")
    return Path(file), argument


def row_config(row: str) -> ConfigDict:
    """The config of one row: the file's, then what the command line sets."""
    flag = flags.FLAGS["config"]
    file, argument = config_file()
    given = [p for p in argument.split(",") if p and p not in configs.ROWS]
    config = load(file).get_config(",".join([row, *given]))
    for key, value in config_flags.get_override_values(flag).items():
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError as error:
            # A setting of one method's is none of another's.
            if not key.startswith("method."):
                raise ValueError(f"--config.{key}: no such field") from error
            print(f"{row} has no setting {key}: left as it is", file=sys.stderr)
    return config


def stopped(workdir: Path) -> int:
    """Tells the user how to go on; gives the command's exit status."""
    print(
        f"stopped; its state is in {workdir}, the same command goes on from there",
        file=sys.stderr,
    )
    return 130


def _guarded(main: Callable[[Sequence[str]], int | None]):
    def guarded(argv: Sequence[str]) -> int | None:
        prepare_jax()
        try:
            return main(argv)
        except (UsageError, ValueError, DataError, CheckpointError) as error:
            if os.environ.get("JAXCL_TRACEBACK"):
                raise
            fail(error)

    return guarded


def prepare_jax() -> None:
    """Quiet logs, compilation cache, one CPU device a core, other hosts if any."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it touches
    # A CPU counts as one device unless told otherwise; seeds are sharded over devices.
    jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value or cores())
    try:
        folder = cache_root() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    except OSError:
        pass  # compiling anew is slower, not wrong
    if _CLUSTER.value:
        jax.distributed.initialize()
    elif _COORDINATOR.value is not None:
        if _PROCESSES.value is None or _PROCESS.value is None:
            raise UsageError("--coordinator needs --num_processes and --process_id")
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
