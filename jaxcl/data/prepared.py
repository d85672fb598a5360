"""Data sets of TFDS: read from prepared folders, downloaded and prepared if absent.

They come from a prepared folder, `<data_dir>/<name>/<version>`, and are decoded once
into the cache (see `cache`). The cached copy is chosen in this way:

- There is a prepared folder: only a copy made from this folder is used. It is known by
  the version and the size and start of each file (Tiny-ImageNet: by its archive).
- There is none, and no data_dir is given by argument or TFDS_DATA_DIR: the only cached
  copy is used, so that a machine without TFDS can run from a cache given to it.
- There is neither: the data set is downloaded and prepared, in the data_dir if that can
  be written, else in the cache. Tiny-ImageNet is prepared without network from
  `<data_dir>/downloads/manual/tiny-imagenet-200.zip` if that exists.
"""

import functools
import importlib.util
import json
import logging
import os
import re
import zlib
from pathlib import Path
from typing import NoReturn

from jaxcl import files
from jaxcl.data import cache
from jaxcl.data.cache import DataError
from jaxcl.data.decoding import decode, splits_of, tests_of
from jaxcl.data.reading import SPLIT, Reading, require_effect
from jaxcl.data.source import Source

_log = logging.getLogger(__name__)
# Hosts that must answer before TFDS is asked to download: it would retry for minutes.
HOSTS = {
    "mnist": "https://storage.googleapis.com",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "cifar10": "https://www.cs.toronto.edu",
    "cifar100": "https://www.cs.toronto.edu",
    "tiny_imagenet": "https://cs231n.stanford.edu",
}
# The host that TFDS asks first, for data sets whose own host is not known here.
_HOST = "https://storage.googleapis.com"
_ARCHIVE = Path("downloads/manual/tiny-imagenet-200.zip")
_HEAD = 1 << 16


def from_tfds(
    name: str, reading: Reading, data_dir: str | None, cache_dir: str | None
) -> Source:
    """Returns a data set of TFDS, decoding it into the cache if it is not there yet.

    Args:
      name: the TFDS name with its config ("imagenette/160px-v2").
      reading: the size of the images, if they differ in size; the share for testing, if
        there is neither a test nor a validation split.
      data_dir: the TFDS folder; TFDS_DATA_DIR, else ~/tensorflow_datasets.
      cache_dir: the cache.

    Raises:
      DataError: the data set is absent and cannot be prepared, or is not one for image
        classification; its prepared folder or cached copy is damaged; the cache cannot
        be written.
    """
    named = data_dir or os.environ.get("TFDS_DATA_DIR")
    if "://" in (named or ""):
        raise DataError(f"{name}: data_dir is {named!r}; it must be a local folder.")
    root = data_root(named)
    own = cache.cache_root(cache_dir)
    side = reading.side
    store = own / (name if side is None else f"{name}-{side[0]}x{side[1]}")
    prepared = _find_prepared(name, root, own)
    if prepared is None:
        copies = [] if named else _copies(store, reading)
        if len(copies) > 1:
            raise DataError(
                f"{name}: {store} holds copies of several sources, "
                f"{[copy.name for copy in copies]}, and {root} holds none of them. Set "
                "TFDS_DATA_DIR to the one that is meant, or delete the other copies."
            )
        if copies:
            _log.info("%s: nothing in %s, using %s", name, root, copies[0])
            _require_drawn(name, copies[0], reading)
            return cache.read(copies[0], name)
        prepared = _prepare(name, root, own, store)
    folder = store / _fingerprint(name, prepared, reading)
    _require_drawn(name, folder, reading)
    if not folder.exists():
        _log.info("%s: decoding %s into %s", name, prepared, folder)
        cache.write(folder, name, **decode(name, prepared, reading))
    return cache.read(folder, name)


def data_root(data_dir: str | None = None) -> Path:
    """The TFDS folder: `data_dir`, else from the environment, else in the home folder.

    Raises:
      DataError: it should be in the home folder, and there is none.
    """
    named = data_dir or os.environ.get("TFDS_DATA_DIR")
    return cache.local(named or "~/tensorflow_datasets", "TFDS_DATA_DIR")


def _find_prepared(name: str, root: Path, own: Path) -> Path | None:
    """Returns the newest prepared version of `name`: in the data_dir, else our own."""
    for base in (root, _own_root(name, root, own)):
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
    """Raises DataError if `prepared` was made from another archive than `archive`."""
    made_of = _archive_key(prepared)
    if name != "tiny_imagenet" or made_of is None or not archive.is_file():
        return
    if made_of != files.tail_key(archive):
        raise DataError(
            f"{name}: {prepared} was not prepared from {archive}. Delete the one "
            "that is not meant."
        )


def _archive_key(prepared: Path) -> str | None:
    """The archive that a folder was prepared from, if our builder recorded it."""
    metadata = prepared / "metadata.json"
    content = json.loads(metadata.read_text()) if metadata.is_file() else {}
    return content.get("archive")


def _own_root(name: str, root: Path, own: Path) -> Path:
    """Where this data set is prepared when its data_dir cannot be written.

    Each archive has its own folder, so that a subset of Tiny-ImageNet never passes for
    the whole.
    """
    by_hand = name == "tiny_imagenet" and (root / _ARCHIVE).is_file()
    key = files.tail_key(root / _ARCHIVE) if by_hand else "download"
    return own / "prepared" / key


def _prepare(name: str, root: Path, own: Path, store: Path) -> Path:
    """Downloads (or finds in the manual folder) and prepares; returns the folder."""
    base = root if _writable(root) else _own_root(name, root, own)
    try:
        import requests
        import tensorflow_datasets as tfds

        if name == "tiny_imagenet":
            from jaxcl.data.tiny_imagenet import TinyImagenet as make_builder
        elif importlib.util.find_spec("tensorflow") is None:
            _absent(name, root, store, "TFDS needs TensorFlow to prepare it")
        else:
            make_builder = functools.partial(tfds.builder, name)
        if name != "tiny_imagenet" or not (root / _ARCHIVE).is_file():
            requests.head(
                HOSTS.get(name, _HOST), timeout=10
            )  # uses proxies, as TFDS does
        if base != root:
            cache.make_folder(base)
        config = tfds.download.DownloadConfig(manual_dir=root / _ARCHIVE.parent)
        builder = make_builder(data_dir=base, file_format="array_record")
        builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:  # TFDS raises many kinds
        # Another process that finished first makes ours fail at its last step.
        if found := _find_prepared(name, root, own):
            return found
        _absent(name, root, store, error)
    return Path(builder.data_dir)


def _writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the nearest parent that exists.

    The mode is checked too: for root, even a read-only folder seems writable.
    """
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _copies(store: Path, reading: Reading | None = None) -> list[Path]:
    """Cached copies; with `reading`, only those with the same test part."""
    found = sorted(path.parent for path in store.glob("[!.]*/meta.json"))
    key = None if reading is None else reading.split_key
    return [c for c in found if key is None or "-test" not in c.name or key in c.name]


def _fingerprint(name: str, prepared: Path, reading: Reading) -> str:
    """Returns "<version>-<archive>", else "<version>-<CRC-32 of the files' heads>".

    The archive is preferred: TFDS writes the same records as different bytes each time.
    If a test part is drawn, its key is appended.
    """
    drawn = "" if tests_of(splits_of(prepared)) else f"-{reading.split_key}"
    if archive := _archive_key(prepared):
        return f"{prepared.name}-{archive}{drawn}"
    crc = 0
    for path in sorted(prepared.glob("*-of-*")):
        with path.open("rb") as file:
            crc = zlib.crc32(f"{path.name} {path.stat().st_size}".encode(), crc)
            crc = zlib.crc32(file.read(_HEAD), crc)
    return f"{prepared.name}-{crc:08x}{drawn}"


def _require_drawn(name: str, folder: Path, reading: Reading) -> None:
    """Refuses a share for testing where the data set has a test part."""
    if "-test" not in folder.name:  # see `_fingerprint`
        require_effect(reading, f"{name}, which has one", *SPLIT)


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
