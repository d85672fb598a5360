"""A run's state on disk, by orbax: whole, atomic, independent of the devices."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxcl.types import PyTree


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says what to do."""


class Checkpoints:
    """The last few states of a run.

    States are host arrays with a leading [S] without padding, so that a run may go on
    with another number of devices. Typed keys are stored as their data.
    """

    def __init__(self, folder: Path, keep: int = 2):
        """Opens or creates `folder`.

        Raises:
          CheckpointError: the folder cannot be written.
        """
        self.folder = Path(folder).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoints to {self.folder}: {error.strerror}; give "
                "another --workdir"
            ) from error
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=False, enable_async_checkpointing=False
            ),
        )

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree) -> None:
        """Writes a state under `step`, replacing one of the same number.

        Raises:
          CheckpointError: the disk is full or the folder not writable; what was saved
            before is still there.
        """
        if step in self._manager.all_steps():
            return  # the state at a step is a function of the step
        try:
            self._manager.save(step, args=ocp.args.StandardSave(_plain(state)))
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot write checkpoint {step} to {self.folder}: {error}; earlier "
                "checkpoints are kept, free the disk and run the same command again"
            ) from error

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Reads the state under `step` into the structure, shapes and dtypes of `like`.

        Raises:
          CheckpointError: it is truncated, corrupt, or of another configuration.
        """
        path = self.folder / str(step)
        earlier = [s for s in self._manager.all_steps() if s < step]
        fallback = (
            f"delete that folder to go on from checkpoint {max(earlier)}"
            if earlier
            else "delete that folder to start from the beginning"
        )
        plain = _plain(like)
        target = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), plain)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.StandardRestore(target)
            )
        except Exception as error:  # orbax and tensorstore raise many kinds
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"checkpoint {path} cannot be read: {first[:300]}; {fallback}"
            ) from error
        for (where, old), new in zip(
            jax.tree_util.tree_leaves_with_path(plain),
            jax.tree.leaves(restored),
            strict=True,
        ):
            if old.shape != new.shape or old.dtype != new.dtype:
                raise CheckpointError(
                    f"checkpoint {path} is of another configuration: "
                    f"{jax.tree_util.keystr(where)} is {new.dtype}{list(new.shape)} "
                    f"there and {old.dtype}{list(old.shape)} now; use another workdir"
                )
        return _typed(restored, like)

    def close(self) -> None:
        self._manager.close()


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _plain(state: PyTree) -> PyTree:
    return jax.tree.map(
        lambda a: np.asarray(jax.random.key_data(a) if _is_key(a) else a), state
    )


def _typed(restored: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(
        lambda a, b: jax.random.wrap_key_data(a) if _is_key(b) else np.asarray(a),
        restored,
        like,
    )
