"""Decoded data sets as plain .npy files, so that a second start decodes nothing.

Each data set and source has one folder:

    <cache>/<name>/<fingerprint>/{train_x,train_y,test_x,test_y}.npy  meta.json

The cache is `JAXCL_CACHE`, else `$XDG_CACHE_HOME/jaxcl`, else `~/.cache/jaxcl`.
A folder appears whole or not at all. At every start it is checked against its CRC-32
sums (0.05 s for the 184 MB of CIFAR-100). It is never repaired or deleted here.
"""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcl.data.pixels import Counts, Moments, tally
from jaxcl.data.source import Source

_FORMAT = 1
_ARRAYS = ("train_x", "train_y", "test_x", "test_y")


class DataError(RuntimeError):
    """A data set is not available; the message says where it was sought, and a cure."""


class Split(NamedTuple):
    """One split for `write` to store: the shape of x, and all its batches."""

    shape: tuple[int, ...]  # [N, ..., C]
    batches: Iterable[tuple[np.ndarray, np.ndarray]]  # (x [b, ..., C], int [b])
    dtype: type = np.uint8  # of x, or np.float32


def cache_root(cache_dir: str | None = None) -> Path:
    """The cache folder: `cache_dir`, else by the environment, else in the home folder.

    Raises:
      DataError: the cache should be in the home folder, and there is none.
    """
    folder = cache_dir or os.environ.get("JAXCL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return local(folder or Path(base) / "jaxcl", "JAXCL_CACHE")


def local(path: str | Path, variable: str) -> Path:
    """A path without "~"; a DataError names the variable to set if there is no home."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise DataError(
            f"there is no home folder for {path} ({error}); set {variable}"
        ) from error


def make_folder(folder: Path) -> None:
    """Creates `folder` and its parents; raises DataError if this fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write(
    folder: Path,
    name: str,
    *,
    train: Split,
    test: Split,
    class_names: Iterable[str],
    max_value: float,
    notes: Iterable[str] = (),
) -> None:
    """Stores a data set as `folder`, whole or not at all; pixels stream in batches.

    If two processes write, the first to finish wins and the other's copy is dropped.

    Raises:
      DataError: the folder cannot be written, a label is not a class, a pixel is above
        `max_value` or not finite, or the number of examples differs from a split's
        shape.
    """
    make_folder(folder.parent)
    names = list(class_names)
    meta: dict[str, Any] = {"format": _FORMAT, "name": name, "class_names": names}
    meta |= {"max_value": max_value, "notes": list(notes), "arrays": {}}
    try:
        temp = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    try:
        temp.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from other users
        for split_name, split in (("train", train), ("test", test)):
            seen = _write_split(temp, name, split_name, split, meta)
            if fault := seen.fault(max_value):
                raise DataError(f"{name}: a {split_name} pixel {fault}.")
            if split_name == "train":
                mean, std = seen.mean_std(max_value)
                # A constant channel gives 0 / 1 = 0 when it is normalised.
                meta |= {"mean": mean.tolist(), "std": np.where(std, std, 1.0).tolist()}
        (temp / "meta.json").write_text(json.dumps(meta, indent=1))
        try:
            temp.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def read(folder: Path, name: str) -> Source:
    """Reads the data set stored in `folder` and checks sizes, headers, labels and sums.

    Raises:
      DataError: the folder differs from what `write` stored for the data set `name`.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if (meta["format"], meta["name"]) != (_FORMAT, name):
            raise ValueError(f"holds {meta['name']}, format {meta['format']}")
        arrays = {key: _read_array(folder, meta, key) for key in _ARRAYS}
        for split in ("train", "test"):
            if len(arrays[f"{split}_x"]) != len(arrays[f"{split}_y"]):
                raise ValueError(f"{split}_x and {split}_y differ in length")
            _check_labels(name, arrays[f"{split}_y"], len(meta["class_names"]))
        for key in _ARRAYS:
            content = np.memmap(folder / f"{key}.npy", np.uint8, mode="r")
            if zlib.crc32(content.data) != meta["arrays"][key]["crc32"]:
                raise ValueError(f"{key}.npy differs from its checksum")
        return Source(
            name=name,
            class_names=tuple(meta["class_names"]),
            max_value=meta["max_value"],
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            notes=tuple(meta.get("notes", ())),
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(
            f"{name}: the cached copy in {folder} is damaged ({error}). "
            "Delete that folder and start again."
        ) from error


def _write_split(
    temp: Path, name: str, split_name: str, split: Split, meta: dict[str, Any]
) -> Counts | Moments:
    """Writes one split's x and y, records them in `meta`; returns the tally of x."""
    total, dtype, labels = split.shape[0], np.dtype(split.dtype), []
    seen = tally(dtype, split.shape[-1])
    with _Writer(temp / f"{split_name}_x.npy", split.shape, split.dtype) as file:
        for x, y in split.batches:
            if x.shape != (len(y), *split.shape[1:]) or x.dtype != dtype:
                raise DataError(
                    f"{name}: {split_name} images are {x.dtype}{list(x.shape)} where "
                    f"{dtype}{[len(y), *split.shape[1:]]} is due."
                )
            _check_labels(name, y, len(meta["class_names"]))
            seen.add(x)
            file.write(x)
            labels.append(y.astype(np.int32))
    meta["arrays"][f"{split_name}_x"] = file.entry
    written = np.concatenate(labels) if labels else np.zeros(0, np.int32)
    if not total or len(written) != total:
        raise DataError(f"{name}: {split_name} gave {len(written)} of {total} images.")
    with _Writer(temp / f"{split_name}_y.npy", written.shape, np.int32) as file:
        file.write(written)
    meta["arrays"][f"{split_name}_y"] = file.entry
    return seen


class _Writer:
    """Writes a .npy file piece by piece, and computes its checksum meanwhile.

    It is not a memory map: on a full disk, writing to a map kills the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type):
        self._file = path.open("wb+")
        dtype_ = np.dtype(dtype).newbyteorder("<")
        header = {"shape": shape, "fortran_order": False, "descr": dtype_.str}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.seek(0)
        self.entry = {"shape": list(shape), "dtype": dtype_.str, "crc32": 0}
        self.entry["crc32"] = zlib.crc32(self._file.read())

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.entry["bytes"] = self._file.tell()
        self._file.close()

    def write(self, piece: np.ndarray) -> None:
        data = np.ascontiguousarray(piece).astype(self.entry["dtype"], copy=False)
        self._file.write(data.data)
        self.entry["crc32"] = zlib.crc32(data.data, self.entry["crc32"])


def _read_array(folder: Path, meta: dict[str, Any], key: str) -> np.ndarray:
    """Maps one array, its size and header checked against `meta`."""
    entry, path = meta["arrays"][key], folder / f"{key}.npy"
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(
            f"{key}.npy has {path.stat().st_size} bytes, not {entry['bytes']}"
        )
    array = np.load(path, mmap_mode="r")
    if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
        raise ValueError(f"{key}.npy is {array.dtype}{list(array.shape)}")
    return array


def _check_labels(name: str, y: np.ndarray, num_classes: int) -> None:
    """Raises DataError if a label is outside [0, num_classes)."""
    for value in (y.min(initial=0), y.max(initial=0)):
        if not 0 <= value < num_classes:
            raise DataError(f"{name}: label {value} is outside [0, {num_classes}).")


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"The cache folder {folder} cannot be written ({error}). "
        "Set JAXCL_CACHE to a folder that can."
    )
