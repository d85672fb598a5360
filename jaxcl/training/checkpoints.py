"""A run's state on disk, by orbax: whole, checked, independent of the devices."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from jaxcl import files
from jaxcl.ops import trees
from jaxcl.training import saved
from jaxcl.training.fingerprint import Fingerprint, foreign, in_words, otherwise_made
from jaxcl.training.saved import CheckpointError
from jaxcl.types import PyTree

STATE = "state"


class Found(NamedTuple):
    """The state from which a run can continue."""

    step: int
    sessions: list[dict[str, Any]]  # as given to `Checkpoints.save`


class Checkpoints:
    """The last few states of a run.

    States are host arrays with a leading [S] without padding, so that a run may
    continue on another number of devices. Typed keys are stored as their data.
    """

    def __init__(self, folder: Path, mine: Fingerprint, keep: int = 2):
        """Opens or makes `folder`, which no other process may use until it is closed.

        Args:
          folder: the folder of the states.
          mine: the fingerprint that states must match.
          keep: how many states to keep.

        Raises:
          CheckpointError: the folder cannot be written, or another process uses it.
        """
        self.folder, self.mine, self.keep = Path(folder).absolute(), mine, keep
        self._lock = None
        if _is_main():
            try:
                self._lock = files.Lock(self.folder)
                files.sweep(self.folder)
            except files.InUse as error:
                raise CheckpointError(str(error)) from error
            except OSError as error:
                raise CheckpointError(
                    f"cannot write checkpoints to {self.folder}: {error.strerror}; "
                    "give another --workdir"
                ) from error
        _wait("jaxcl_opened")
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def close(self) -> None:
        self._orbax.close()
        if self._lock:
            self._lock.release()

    def find(self, *, strict: bool = False) -> Found | None:
        """The newest whole state, if it belongs to this run; None if there is none.

        A damaged step is renamed to ``damaged-STEP``, with a warning, and the one
        before it is taken. Warns of a state made by other code or other versions.

        Args:
          strict: refuses a state made by other code or other versions.

        Raises:
          CheckpointError: the state belongs to another run, is refused by `strict`, or
            cannot be read. Nothing on the disk is changed.
        """
        damaged: dict[int, str] = {}
        found = None
        for step in sorted(saved.numbers(self.folder), reverse=True):
            try:
                about = saved.check(self.folder / str(step))
            except saved.Damaged as error:
                damaged[step] = str(error)
                continue
            self._require(about, step, strict)
            found = Found(step, about["sessions"])
            break
        _wait("jaxcl_checked")  # before any step is renamed
        for number, what in damaged.items():
            self._set_aside(number, what, found)
        return found

    def _require(self, about: Mapping[str, Any], step: int, strict: bool) -> None:
        """Refuses another run's state; warns of other code or versions."""
        path, there = self.folder / str(step), Fingerprint(**about["fingerprint"])
        differences = foreign(there, self.mine)
        if differences:
            raise CheckpointError(
                f"checkpoint {path} is of another run: "
                f"{in_words(differences, there, self.mine)}; use another --workdir"
            ) from ValueError("; ".join(differences))  # for JAXCL_TRACEBACK
        made_by = otherwise_made(there, self.mine)
        if made_by and strict:
            raise CheckpointError(
                f"checkpoint {path} was made otherwise: {'; '.join(made_by)}; without "
                "--strict the run goes on from it and says so in its result"
            )
        if made_by:
            warnings.warn(
                f"the run goes on from checkpoint {path}, which was made otherwise: "
                f"{'; '.join(made_by)}; its result lists both",
                stacklevel=4,
            )

    def _set_aside(self, step: int, what: str, found: Found | None) -> None:
        name = saved.set_aside(self.folder, step) if _is_main() else "set aside"
        on = f"checkpoint {found.step}" if found else "the beginning"
        warnings.warn(
            f"checkpoint {self.folder / str(step)} is damaged: {what}; it is now "
            f"{name}, the run goes on from {on}",
            stacklevel=4,
        )

    def save(
        self,
        step: int,
        state: PyTree,
        sessions: Sequence[Mapping[str, Any]],
    ) -> None:
        """Writes a state under `step`; an existing one has the same content and stays.

        Args:
          step: increases from state to state.
          state: host arrays and typed keys.
          sessions: for each process of the run, anything that JSON can hold.

        Raises:
          CheckpointError: the disk is full or the folder is not writable; states saved
            before are still there.
        """
        if step in saved.numbers(self.folder):
            return
        temporary = self.folder / f".{step}.tmp"
        about = {"fingerprint": self.mine._asdict(), "sessions": list(sessions)}
        try:
            if _is_main():
                temporary.mkdir(exist_ok=True)
            _wait("jaxcl_save")
            args = ocp.args.StandardSave(trees.without_keys(state))
            with _quiet():
                self._orbax.save(temporary / STATE, args=args)
            if _is_main():
                saved.seal(temporary, about)
                temporary.rename(self.folder / str(step))
                files.settle(self.folder)
                saved.forget(self.folder, self.keep)
            _wait("jaxcl_saved")
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                files.sweep(self.folder)
            # tensorstore tells of each layer that it has gone through.
            full = any(s in str(error) for s in ("No space left", "quota exceeded"))
            where = f"no space left on {self.folder}"
            why = where if full else f"{self.folder}: {_short(error)}"
            raise CheckpointError(
                f"cannot write checkpoint {step}: {why}; earlier checkpoints are kept, "
                "free the disk and run the same command again"
            ) from error

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Reads the state under `step` into the structure, shapes and dtypes of `like`.

        Raises:
          CheckpointError: it does not fit. After `find`, this can happen only to a
            state made by other code or other versions.
        """
        path = self.folder / str(step)
        plain = trees.without_keys(like)
        try:
            found = self._orbax.metadata(path / STATE).item_metadata
            stored = {leaf.name: leaf for leaf in jax.tree.leaves(found and found.tree)}
            # Before it is read: orbax would cast what it reads to the target's dtype.
            _require_alike(path, stored, plain)
            restored = self._orbax.restore(
                path / STATE, args=ocp.args.StandardRestore(plain)
            )
        except CheckpointError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise CheckpointError(
                f"checkpoint {path} is whole, but this code cannot read it: "
                f"{_short(error)}; it is left as it is: go on with the code and the "
                "versions that made it, or use another --workdir"
            ) from error
        return trees.with_keys(restored, like)


def _require_alike(path: Path, stored: Mapping[str, Any], like: PyTree) -> None:
    """Refuses a state whose arrays have other shapes or dtypes than these."""
    for where, now in jax.tree_util.tree_leaves_with_path(like):
        name = jax.tree_util.keystr(where, simple=True, separator=".")
        there = stored.get(name)  # what is missing, orbax names
        if there and (there.shape != now.shape or there.dtype != now.dtype):
            raise CheckpointError(
                f"checkpoint {path} is of another configuration or version: {name} is "
                f"{there.dtype}{list(there.shape)} there and {now.dtype}"
                f"{list(now.shape)} now; use another --workdir"
            )


def _short(error: BaseException) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 200 else f"{first[:200]} …"


def _is_main() -> bool:
    return jax.process_index() == 0


def _wait(name: str) -> None:
    """Waits until every host has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences orbax's log: errors of its threads are also raised here."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
