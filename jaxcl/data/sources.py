"""The data sets: `load(name)` gives train and test as memory-mapped uint8 arrays.

    digits         Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", 1998,
                   https://archive.ics.uci.edu/dataset/80: the 1,797 test images, as
                   scikit-learn carries them. Needs no network.
    mnist          LeCun, Cortes & Burges, "MNIST handwritten digit database", 2010,
                   http://yann.lecun.com/exdb/mnist
    fashion_mnist  Xiao, Rasul & Vollgraf, "Fashion-MNIST", 2017,
                   https://arxiv.org/abs/1708.07747
    cifar10        Krizhevsky, "Learning multiple layers of features from tiny images",
    cifar100       2009, https://www.cs.toronto.edu/~kriz/cifar.html
    tiny_imagenet  Le & Yang, "Tiny ImageNet Visual Recognition Challenge", 2015 (see
                   `tiny_imagenet`); its validation images serve as the test split.

All but digits come from a prepared TFDS folder, `<data_dir>/<name>/<version>`, and are
decoded once into the cache (see `cache`). Which cached copy is taken:

- There is a prepared folder: the copy made of that folder and no other. Its version and
  the size and start of each of its files (Tiny-ImageNet: its archive) tell it apart.
- There is none and no data_dir was named, by argument or TFDS_DATA_DIR: the one cached
  copy there is, so that a machine without TFDS runs from a cache it was given.
- There is none: it is downloaded and prepared, in the data_dir if that can be written,
  else in the cache. Tiny-ImageNet is prepared without network from
  `<data_dir>/downloads/manual/tiny-imagenet-200.zip` where that exists.
"""

import importlib.util
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from absl import logging

from jaxcl.data import cache
from jaxcl.data.cache import DataError, Source, Split

__all__ = ["SOURCES", "DataError", "Source", "load"]

# What has to answer before TFDS is asked to download: it would retry for minutes.
_HOSTS = {
    "mnist": "https://storage.googleapis.com",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "cifar10": "https://www.cs.toronto.edu",
    "cifar100": "https://www.cs.toronto.edu",
    "tiny_imagenet": "https://cs231n.stanford.edu",
}
SOURCES = frozenset({"digits", *_HOSTS})

_ARCHIVE = Path("downloads/manual/tiny-imagenet-200.zip")
_BATCH = 1000
_HEAD = 1 << 16


def load(
    name: str, *, data_dir: str | None = None, cache_dir: str | None = None
) -> Source:
    """Returns a data set, decoding it into the cache if it is not there yet.

    Args:
      name: one of `SOURCES`.
      data_dir: the TFDS folder; TFDS_DATA_DIR, else ~/tensorflow_datasets.
      cache_dir: the cache; JAXCL_CACHE, else the user's cache folder.

    Returns:
      A Source: train_x uint8 [N, H, W, C], train_y int32 [N], test_x, test_y, ...

    Raises:
      ValueError: `name` is not in `SOURCES`.
      DataError: the data set is absent and cannot be prepared, its prepared folder or
        cached copy is damaged, or the cache cannot be written.
    """
    if name not in SOURCES:
        raise ValueError(f"name is {name!r}; it must be one of {sorted(SOURCES)}.")
    store = cache.cache_root(cache_dir) / name
    if name == "digits":
        folder = store / "1"  # the version of the split below
        if not folder.exists():
            cache.write(folder, name, **_decode_digits())
        return cache.read(folder, name)

    named = data_dir or os.environ.get("TFDS_DATA_DIR")
    if "://" in (named or ""):
        raise DataError(f"{name}: data_dir is {named!r}; it must be a local folder.")
    root = cache.local(named or "~/tensorflow_datasets", "TFDS_DATA_DIR")
    prepared = _find_prepared(name, root, store)
    if prepared is None:
        copies = [] if named else _copies(store)
        if len(copies) > 1:
            raise DataError(
                f"{name}: {store} holds copies of several sources, "
                f"{[copy.name for copy in copies]}, and {root} holds none of them. Set "
                "TFDS_DATA_DIR to the one that is meant, or delete the other copies."
            )
        if copies:
            logging.info("%s: nothing in %s, using %s", name, root, copies[0])
            return cache.read(copies[0], name)
        prepared = _prepare(name, root, store)
    folder = store / _fingerprint(prepared)
    if not folder.exists():
        logging.info("%s: decoding %s into %s", name, prepared, folder)
        cache.write(folder, name, **_decode(name, prepared))
    return cache.read(folder, name)


def _decode_digits() -> dict[str, Any]:
    """Every fifth example of each class, from its third on, is a test example."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype(np.uint8)
    rank = np.zeros(len(y), int)
    for label in range(10):
        rank[y == label] = np.arange((y == label).sum())
    test = rank % 5 == 2
    return {
        "train": Split(x[~test].shape, [(x[~test], y[~test])]),
        "test": Split(x[test].shape, [(x[test], y[test])]),
        "class_names": map(str, range(10)),
        "max_value": 16,
    }


def _decode(name: str, prepared: Path) -> dict[str, Any]:
    """Opens a prepared folder for `cache.write`; its images are decoded on demand."""
    try:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(prepared)
        features = builder.info.features
        label, shape = features["label"], features["image"].shape
        splits = {}
        for split in ("train", "test"):
            validation = name == "tiny_imagenet" and split == "test"
            source = builder.as_data_source(split="validation" if validation else split)
            batches = _batches(source, f"{name} {split}", prepared)
            splits[split] = Split((len(source), *shape), batches)
    except Exception as error:  # TFDS raises many kinds
        _unreadable(name, prepared, error)
    names = label.names or map(str, range(label.num_classes))
    return splits | {"class_names": names, "max_value": 255}


def _batches(
    source: Any, what: str, prepared: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    last = time.monotonic()
    for start in range(0, len(source), _BATCH):
        stop = min(start + _BATCH, len(source))
        if time.monotonic() - last > 5:
            last = time.monotonic()
            logging.info("Decoding %s: %d of %d images", what, start, len(source))
        try:
            examples = source.__getitems__(range(start, stop))
            x = np.stack([example["image"] for example in examples])
            y = np.array([example["label"] for example in examples])
        except Exception as error:  # a damaged file, a missing decoder
            _unreadable(what, prepared, error)
        yield x, y


def _find_prepared(name: str, root: Path, store: Path) -> Path | None:
    """Returns the newest prepared version of `name`: in the data_dir, else our own."""
    for base in (root, _own_root(name, root, store)):
        found = [
            (tuple(map(int, path.parent.name.split("."))), path.parent)
            for path in (base / name).glob("*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        ]
        if found:
            _check_archive(name, max(found)[1], root / _ARCHIVE)
            return max(found)[1]
    return None


def _check_archive(name: str, prepared: Path, archive: Path) -> None:
    """Raises DataError where `prepared` was made of another archive than is there."""
    made_of = _archive_key(prepared)
    if name != "tiny_imagenet" or made_of is None or not archive.is_file():
        return
    if made_of != cache.tail_key(archive):
        raise DataError(
            f"{name}: {prepared} was not prepared from {archive}. Delete the one "
            "that is not meant."
        )


def _archive_key(prepared: Path) -> str | None:
    """Returns which archive a folder was prepared from, where our builder noted it."""
    metadata = prepared / "metadata.json"
    content = json.loads(metadata.read_text()) if metadata.is_file() else {}
    return content.get("archive")


def _own_root(name: str, root: Path, store: Path) -> Path:
    """Where this data set is prepared when its data_dir cannot be written.

    One folder an archive, so that a subset of Tiny-ImageNet never passes for the whole.
    """
    by_hand = name == "tiny_imagenet" and (root / _ARCHIVE).is_file()
    key = cache.tail_key(root / _ARCHIVE) if by_hand else "download"
    return store.parent / "prepared" / key


def _prepare(name: str, root: Path, store: Path) -> Path:
    """Downloads (or finds in the manual folder) and prepares; returns the folder."""
    base = root if _writable(root) else _own_root(name, root, store)
    try:
        import requests
        import tensorflow_datasets as tfds

        if name == "tiny_imagenet":
            from jaxcl.data.tiny_imagenet import TinyImagenet as make_builder
        elif importlib.util.find_spec("tensorflow") is None:
            _absent(name, root, store, "TFDS needs TensorFlow to prepare it")
        else:
            make_builder = lambda **kwargs: tfds.builder(name, **kwargs)  # noqa: E731
        if name != "tiny_imagenet" or not (root / _ARCHIVE).is_file():
            requests.head(_HOSTS[name], timeout=10)  # heeds proxies, as TFDS does
        if base != root:
            cache.make_folder(base)
        config = tfds.download.DownloadConfig(manual_dir=root / _ARCHIVE.parent)
        builder = make_builder(data_dir=base, file_format="array_record")
        builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:  # TFDS raises many kinds
        # Another process that finished first makes ours fail at its last step.
        if found := _find_prepared(name, root, store):
            return found
        _absent(name, root, store, error)
    return Path(builder.data_dir)


def _writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the nearest parent that exists.

    The mode is looked at too: to root a folder that was made read-only seems writable.
    """
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _copies(store: Path) -> list[Path]:
    return sorted(path.parent for path in store.glob("[!.]*/meta.json"))


def _fingerprint(prepared: Path) -> str:
    """Returns "<version>-<archive>", else "<version>-<CRC-32 of the files' heads>".

    The archive is preferred: TFDS writes the same records as other bytes each time.
    """
    if archive := _archive_key(prepared):
        return f"{prepared.name}-{archive}"
    crc = 0
    for path in sorted(prepared.glob("*-of-*")):
        with path.open("rb") as file:
            crc = zlib.crc32(f"{path.name} {path.stat().st_size}".encode(), crc)
            crc = zlib.crc32(file.read(_HEAD), crc)
    return f"{prepared.name}-{crc:08x}"


def _absent(name: str, root: Path, store: Path, why: BaseException | str) -> NoReturn:
    cause = why if isinstance(why, BaseException) else None
    message = (
        f"{name}: no prepared copy is in {root / name}, and preparing it failed: "
        f"{type(why).__name__ + ': ' if cause else ''}{why}. Set TFDS_DATA_DIR to a "
        f"folder that holds {name}/<version>, or `pip install 'jaxcl[prepare]'` and "
        "start once with a network."
    )
    if copies := _copies(store):
        message += f" (To use the cached {copies[0]}, unset TFDS_DATA_DIR.)"
    raise DataError(message) from cause


def _unreadable(name: str, prepared: Path, error: Exception) -> NoReturn:
    raise DataError(
        f"{name}: the prepared copy in {prepared} cannot be read "
        f"({type(error).__name__}: {error}). It must be complete and in array_record "
        "format; `tfds convert_format` converts, or prepare it again."
    ) from error
