"""Reads arrays from a file of PyTorch before version 1.6, without PyTorch.

Such a file has five pickles (a magic number, the format's version, the writer's system,
the state, the keys of its storages) and then each storage: its length, its numbers. A
pickle may call any function that it names; here only four names are allowed, and they
build arrays.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


class _Kind(NamedTuple):
    """The class of a storage; a pickle cannot call it."""

    dtype: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers; PyTorch's kernels may be in any order


class _Refused(Exception):
    """The state asks for a name that is not allowed."""


class _State(pickle.Unpickler):
    """Reads the state: dictionaries of tensors."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name == "collections.OrderedDict":
            return OrderedDict
        if name == "torch._utils._rebuild_tensor_v2":
            # A new function for each file: a pickle may change it, but only there.
            return lambda *given: _tensor(*given)
        if module_name == "torch" and global_name in _TYPES:
            return _Kind(_TYPES[global_name])
        raise _Refused(name)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, size, view = pid
        if kind != "storage" or not isinstance(storage, _Kind) or view is not None:
            raise ValueError(f"a storage is described by {pid!r}")
        return _Storage(str(key), storage.dtype, int(size))


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    tensor = _Tensor(storage, offset, tuple(shape), tuple(strides))
    numbers = (offset, *tensor.shape, *tensor.strides)
    if not isinstance(storage, _Storage) or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"a tensor is described by {tensor}")
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"a tensor is described by {tensor}")
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = offset + sum((n - 1) * step for n, step in steps)
    if 0 in tensor.shape or last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} lies beyond its storage")
    return tensor


class _Plain(pickle.Unpickler):
    """Reads numbers, strings and lists of them."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise _Refused(f"{module_name}.{global_name}")


def read(file: Path) -> dict[str, NDArray]:
    """The arrays of a file in PyTorch's legacy format, by name.

    Args:
      file: the file of a state dictionary with float32 and int64 arrays.

    Returns:
      Name -> array, in the file's order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has another format, was cut off, or asks for another name
        than ``OrderedDict``, ``_rebuild_tensor_v2``, ``FloatStorage`` and
        ``LongStorage``; the message gives the name, which is never imported or called.
    """
    with file.open("rb") as stream:
        try:
            return _read(stream)
        except _Refused as error:
            raise ValueError(
                f"{file} asks for {error}, which is not part of a file of weights: it "
                "was not called, and nothing is read from this file"
            ) from None
        except Exception as error:  # pickle raises many kinds
            raise ValueError(
                f"{file} is no file of weights in PyTorch's legacy format, or was cut "
                f"off: {error}"
            ) from error


def _read(stream: BinaryIO) -> dict[str, NDArray]:
    for name, wanted in (("magic number", _MAGIC), ("version", _VERSION)):
        if (found := _Plain(stream).load()) != wanted:
            raise ValueError(f"its {name} is {found!r}, not {wanted}")
    if not _Plain(stream).load()["little_endian"]:
        raise ValueError("its numbers are big-endian")
    state = _State(stream).load()
    tensors = {k: v for k, v in state.items() if isinstance(v, _Tensor)}
    if len(tensors) != len(state):
        raise ValueError("its state holds other things than tensors")
    of_key = {t.storage.key: t.storage for t in tensors.values()}
    storages = {}
    for key in _Plain(stream).load():
        storage = of_key[key]
        (size,) = np.frombuffer(stream.read(8), "<i8")
        if size != storage.size:
            raise ValueError(f"storage {key} holds {size} numbers, not {storage.size}")
        width = np.dtype(storage.dtype).itemsize
        storages[key] = np.frombuffer(stream.read(size * width), storage.dtype, size)
    return {name: _laid_out(t, storages[t.storage.key]) for name, t in tensors.items()}


def _laid_out(tensor: _Tensor, storage: NDArray) -> NDArray:
    width = storage.itemsize
    return np.lib.stride_tricks.as_strided(  # inside the storage: `_tensor` has checked
        storage[tensor.offset :],
        tensor.shape,
        tuple(width * step for step in tensor.strides),
    ).copy()
