"""What every command of this folder does at its start and around its own work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict, config_flags

from jaxcl import _interrupts
from jaxcl.data.cache import DataError, cache_root
from jaxcl.fields import described, require_fields
from jaxcl.training.checkpoints import CheckpointError

from . import launch_help
from .config import replace_model
from .runs import hosts, machine
from .runs.arguments import one_line, unknown_field, without_logging, written_out
from .runs.machine import UsageError, cores
from .runs.results import OK, Result

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
    *("cpu_devices", None, "Parts to split a CPU into; by default one a core."),
    lower_bound=1,
)
_MODEL = flags.DEFINE_multi_string(
    "model", [], "NAME=VALUE, what --config.model.NAME says of another model."
)
_STRICT = flags.DEFINE_bool(
    "strict", False, "Refuse a state that other code or other versions have made."
)

# Errors that a user can fix: reported in one line. A full disk is an OSError.
TOLD = (UsageError, ValueError, DataError, CheckpointError, OSError, MemoryError)


class _OptionalInt(flags.IntegerParser):
    """Accepts "None" too; `config.problem` checks which fields may be None."""

    def parse(self, argument):
        return None if argument == "None" else super().parse(argument)


class _OptionalFloat(flags.FloatParser):
    def parse(self, argument):
        return None if argument == "None" else super().parse(argument)


config_flags.register_flag_parser_for_type(int, _OptionalInt())
config_flags.register_flag_parser_for_type(float, _OptionalFloat())


flags.disclaim_key_flags()  # flags defined below belong to the calling command


def define_config(
    argument: str = "row", required: bool = True
) -> flags.FlagHolder[ConfigDict]:
    """Defines ``--config``; its help lists every field."""
    told = (
        f"NAME, FILE or FILE:{argument}; fields are --config.field=value, --help after "
        "it tells those of its method and model, too.\n"
    )
    config = config_flags.DEFINE_config_file("config", None, told + described())
    if required:
        flags.mark_flag_as_required("config")
    return config


def folder(given: str | None, *default: str) -> Path:
    """The local folder that a flag names, by default one under results/.

    Raises:
      UsageError: the value is no local folder: it is empty, starts with a "~" that no
        shell has expanded, or is an address.
    """
    if given is None:
        return Path("results", *default)
    if not given.strip() or given.startswith("~") or "://" in given or "\0" in given:
        raise UsageError(f"a folder must be a local path, without ~, got {given!r}")
    return Path(given)


def ended(results: Sequence[Result]) -> int:
    """A command's exit status: 1 if every seed of a run failed; prints which runs."""
    lost = [r for r in results if all(status != OK for status in r.status)]
    for r in lost:
        how = "; ".join(dict.fromkeys(r.status))
        told = f"error: {r.config_name}/{r.row}: every seed failed ({how})"
        print(told, file=sys.stderr)
    return 1 if lost else 0


def define_list(
    name: str, default: Sequence[str] | None, told: str
) -> flags.FlagHolder:
    """Defines a flag with a list of words; an empty one is refused, not "all"."""
    holder = flags.DEFINE_list(name, default, told)
    flags.register_validator(
        name, lambda words: words is None or bool(words), "names nothing"
    )
    return holder


def run(main: Callable[[Sequence[str]], int | None], *, words: bool = False) -> None:
    """Parses flags, prepares JAX, runs `main`.

    A user's mistake ends the command with one line and exit status 2.

    Args:
      main: takes the command line without its flags.
      words: whether anything but flags may stand on the command line.
    """
    try:
        # ml_collections reads fields from sys.argv itself.
        sys.argv = written_out(sys.argv)
    except ValueError as error:
        fail(error)
    app.run(_guarded(main), flags_parser=partial(_parse, words))


def fail(error: BaseException) -> NoReturn:
    print(f"error: {' '.join(machine.in_words(error).split())}", file=sys.stderr)
    sys.exit(2)


@without_logging()
def _parse(words: bool, argv: list[str]) -> list[str]:
    if {"-h", "-help", "--help"} & {*argv[1:]}:
        app.usage(shorthelp=True, writeto_stdout=True)
        try:
            print("\n".join(launch_help.settings(argv)))
        except Exception as e:  # a config file may raise anything
            fail(UsageError(one_line(e)))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].present:
            config = flags.FLAGS["config"].value
            # An unreadable file raises no error before one of its fields is read.
            getattr(config, "name", None)
            require_fields(config)
            replace_model(config, _MODEL.value)
    except Exception as e:  # a config file may raise anything
        with suppress(Exception):
            fail(UsageError(unknown_field(argv)))
        fail(UsageError(one_line(e)))
    if len(rest) > 1 and not words:
        fail(UsageError(f"unexpected argument {rest[1]!r}; settings are --NAME=VALUE"))
    return rest


def config_file() -> tuple[Path, str]:
    """The file that --config names, and the argument after the colon."""
    named = config_flags.get_config_filename(flags.FLAGS["config"])
    file, _, argument = named.partition(":")
    return Path(file), argument


def model_fields() -> list[str]:
    """Fields of another model than the config's, as --model takes them."""
    return list(_MODEL.value)


def strict() -> bool:
    """Whether --strict is given."""
    return _STRICT.value


def stopped(workdir: Path) -> int:
    """Tells the user how to continue; returns the command's exit status."""
    print(
        f"stopped; its state is in {workdir}, the same command goes on from there",
        file=sys.stderr,
    )
    return _interrupts.STATUS


def _guarded(main: Callable[[Sequence[str]], int | None]):
    def guarded(argv: Sequence[str]) -> int | None:
        try:
            _interrupts.begun()
            prepare_jax()
            with hosts.together():
                status = main(argv)
            _interrupts.check()  # a signal that Python swallowed
            return status
        except TOLD as error:
            if os.environ.get("JAXCL_TRACEBACK"):
                raise
            fail(error)
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fail(error)
        except KeyboardInterrupt:  # before or after a run: there is nothing to save
            print(_interrupts.STOPPED.decode(), end="", file=sys.stderr)
            return _interrupts.STATUS

    def ended(argv: Sequence[str]) -> int | None:
        try:
            return guarded(argv)
        except SystemExit as error:
            hosts.end(error.code)
            raise

    return ended


def prepare_jax() -> None:
    """Sets up logs, the compilation cache, one CPU device per core and other hosts."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax logs every file it touches
    # By default JAX sees a CPU as one device; seeds are sharded over devices.
    jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value or cores())
    try:
        folder = cache_root() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    except (OSError, DataError):
        pass  # without the cache, compiling takes longer and gives the same programs
    if _CLUSTER.value:
        jax.distributed.initialize()
    elif _COORDINATOR.value is not None:
        if _PROCESSES.value is None or _PROCESS.value is None:
            raise UsageError("--coordinator needs --num_processes and --process_id")
        host, _, port = _COORDINATOR.value.rpartition(":")
        if not (host and port.isdigit()):
            given = _COORDINATOR.value
            raise UsageError(f"--coordinator must be HOST:PORT, got {given!r}")
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
